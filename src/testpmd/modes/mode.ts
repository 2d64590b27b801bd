/**
 * A forwarding mode at work on one stream.
 */
import type { ForwardMode, MadeConfig, NoisyConfig } from '../engine.ts';
import type { Stream } from '../stream.ts';
import type { ThreadTraffic } from '../traffic/traffic-settings.ts';
import type { Workshop } from '../workshop.ts';

/** What modes are told, in plain values. */
export interface ModeSettings {
  readonly mode: ForwardMode;
  /** packets that are made at once, 1 to 32 */
  readonly burst: number;
  /** bytes of the segments of a packet that is made */
  readonly txpkts: readonly number[];
  readonly noisy: NoisyConfig;
  readonly made: MadeConfig;
  readonly recordBursts: boolean;
  readonly recordCycles: boolean;
  readonly traffic?: ThreadTraffic;
}

export interface Mode {
  /** One turn of the stream. @returns packets received or sent: 0 if there was nothing to do */
  turn(): number;
  /** Of a mode that sends without being asked: ms until it has something, 0 for now, −1 for never. Default 0. */
  readonly nap?: number;
}

export type MakeMode = (stream: Stream, workshop: Workshop, settings: ModeSettings) => Mode;

/** Modes that send on what they receive, changed in place. */
export abstract class EditingMode implements Mode {
  protected readonly stream: Stream;
  protected readonly workshop: Workshop;

  constructor(stream: Stream, workshop: Workshop) {
    this.stream = stream;
    this.workshop = workshop;
  }

  turn(): number {
    const { stream } = this;
    const n = stream.receive();
    if (n === 0) return 0;
    this.edit();
    stream.sendAll();
    stream.complete();
    return n;
  }

  /** Changes the frames of the burst where they lie. */
  protected abstract edit(): void;
}
