/**
 * The modes txonly, flowgen and rxonly with packets that tell what became of them, and with the frames of a capture file.
 */
import { CaptureSource, SOURCE_OPEN } from '../../port/capture-source.ts';
import type { Stream } from '../stream.ts';
import { FlowVerifier } from '../traffic/flow-verifier.ts';
import { FrameMaker, makerBytes } from '../traffic/frame-maker.ts';
import type { TrafficPlan } from '../traffic/traffic-plan.ts';
import type { ThreadTraffic } from '../traffic/traffic-settings.ts';
import type { Workshop } from '../workshop.ts';
import type { Mode, ModeSettings } from './mode.ts';

/** Buffer of a file that is replayed, bytes. */
const REPLAY_BYTES = 2 ** 20;

/** Looks at what arrives, and throws it away. */
class VerifyMode implements Mode {
  readonly #stream: Stream;
  readonly #workshop: Workshop;
  readonly #verifier: FlowVerifier | undefined;

  constructor(stream: Stream, workshop: Workshop, fromFirst: boolean) {
    const memory = stream.plan.verifier;
    this.#stream = stream;
    this.#workshop = workshop;
    this.#verifier = memory === undefined ? undefined : new FlowVerifier(memory, fromFirst);
  }

  turn(): number {
    const n = this.#stream.receive();
    if (n === 0) return 0;
    this.#verifier?.verify(this.#workshop.burst, this.#workshop.windows);
    this.#stream.complete();
    return n;
  }
}

/** Sends packets of a plan. What is not taken is made again. */
class MakerMode implements Mode {
  readonly #stream: Stream;
  readonly #maker: FrameMaker;
  readonly #burst: number;

  constructor(stream: Stream, workshop: Workshop, plan: TrafficPlan, burst: number, run: number) {
    const off = workshop.allocMuch(makerBytes(plan));
    this.#stream = stream;
    this.#burst = burst;
    this.#maker = new FrameMaker(plan, workshop.burst, workshop.own, off, run, stream.plan.firstFlow);
  }

  turn(): number {
    this.#maker.make(this.#burst);
    const sent = this.#stream.sendAll();
    this.#maker.takeBack(this.#burst - sent);
    return sent;
  }
}

/** Sends the frames of a file. What is not taken is lost. */
class ReplayMode implements Mode {
  readonly #stream: Stream;
  readonly #source: CaptureSource;
  readonly #workshop: Workshop;

  constructor(stream: Stream, workshop: Workshop, { replay, replayFd = -1 }: ThreadTraffic) {
    const { path = '', gaps = false, loop = false } = replay ?? {};
    const off = workshop.allocMuch(REPLAY_BYTES);
    this.#stream = stream;
    this.#workshop = workshop;
    const spec = { fd: replayFd, path, off, bytes: REPLAY_BYTES, infinite: loop, gaps };
    this.#source = new CaptureSource(spec, workshop.own);
  }

  turn(): number {
    this.#source.receive(this.#workshop.burst);
    return this.#stream.sendAll();
  }

  get nap(): number {
    if (this.#source.state !== SOURCE_OPEN) return -1;
    return this.#source.idle ? 1 : 0;
  }
}

/** Both in one turn: flowgen throws away what arrives. */
class BothModes implements Mode {
  readonly #first: Mode;
  readonly #second: Mode;

  constructor(first: Mode, second: Mode) {
    this.#first = first;
    this.#second = second;
  }

  turn(): number {
    return this.#first.turn() + this.#second.turn();
  }
}

/** The mode that the settings ask for, if it is one of these. */
export const trafficMode = (stream: Stream, workshop: Workshop, settings: ModeSettings): Mode | undefined => {
  const { mode, burst, traffic } = settings;
  if (traffic === undefined) return undefined;
  const { plan, verify, replay, run } = traffic;
  const fromFirst = verify?.fromFirst ?? false;
  if (mode === 'rxonly') return verify === undefined ? undefined : new VerifyMode(stream, workshop, fromFirst);
  if (mode === 'txonly' && replay !== undefined) return new ReplayMode(stream, workshop, traffic);
  if (plan === undefined || (mode !== 'txonly' && mode !== 'flowgen')) return undefined;
  const maker = new MakerMode(stream, workshop, plan, burst, run);
  return mode === 'txonly' ? maker : new BothModes(new VerifyMode(stream, workshop, fromFirst), maker);
};
