/**
 * The forwarding modes by name.
 */
import type { ForwardMode } from '../engine.ts';
import { CsumMode } from './csum.ts';
import { FiveTupleSwapMode } from './five-tuple-swap.ts';
import { FlowGenMode } from './flowgen.ts';
import { IcmpEchoMode } from './icmpecho.ts';
import { IoMode, MacMode, MacSwapMode } from './mac.ts';
import type { MakeMode } from './mode.ts';
import { NoisyMode } from './noisy.ts';
import { RxOnlyMode } from './rxonly.ts';
import { TxOnlyMode } from './txonly.ts';

export const MODES: Readonly<Record<ForwardMode, MakeMode>> = {
  io: (stream, workshop) => new IoMode(stream, workshop),
  mac: (stream, workshop) => new MacMode(stream, workshop),
  macswap: (stream, workshop) => new MacSwapMode(stream, workshop),
  flowgen: (...args) => new FlowGenMode(...args),
  rxonly: (stream) => new RxOnlyMode(stream),
  txonly: (...args) => new TxOnlyMode(...args),
  csum: (stream, workshop) => new CsumMode(stream, workshop),
  icmpecho: (stream, workshop) => new IcmpEchoMode(stream, workshop),
  '5tswap': (stream, workshop) => new FiveTupleSwapMode(stream, workshop),
  noisy: (...args) => new NoisyMode(...args),
};
