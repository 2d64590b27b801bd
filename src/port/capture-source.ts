/**
 * The frames of a capture file as a port receives them: from the file's buffer in a window, as fast as they are asked for, or at the
 * distances in time at which they were captured.
 */
import type { WindowViews } from '../mem/window.ts';
import { CaptureTime } from '../net/capture-format.ts';
import { CaptureReader, READ_END, READ_FILL, READ_FRAME } from '../net/capture-reader.ts';
import { MonotonicClock } from '../sys/clock.ts';
import type { Burst } from '../virtio-net/burst.ts';
import { addFrame } from './frame-burst.ts';

/** A file that has been opened, and the memory it comes through. */
export interface CaptureSourceSpec {
  /** a regular file; it stays the main thread's */
  readonly fd: number;
  readonly path: string;
  /** where in the port's window its buffer is */
  readonly off: number;
  /** bytes of the buffer, MIN_READ_BUFFER at least */
  readonly bytes: number;
  /** begin anew at the end */
  readonly infinite: boolean;
  /** keep the distances between the frames' times */
  readonly gaps: boolean;
}

/** Frames go on; the file is at its end; it has a fault. */
export const SOURCE_OPEN = 0;
export const SOURCE_END = 1;
export const SOURCE_FAULT = 2;

/** A wait of less is not worth sleeping, ns. */
const SHORT_WAIT = 2e6;

export class CaptureSource {
  /** SOURCE_… */
  state = SOURCE_OPEN;
  readonly reader: CaptureReader;
  readonly #views: WindowViews;
  readonly #infinite: boolean;
  readonly #gaps: boolean;
  readonly #time = new CaptureTime();
  readonly #clock = new MonotonicClock();
  /** a frame has been read that is not due yet */
  #waits = false;
  /** frames since the beginning of the file */
  #frames = 0;
  /** the time of the file's first frame, and when it was received */
  #firstSec = 0;
  #firstNsec = 0;
  #startSec = 0;
  #startNsec = 0;

  constructor({ fd, off, bytes, infinite, gaps }: CaptureSourceSpec, views: WindowViews) {
    this.#views = views;
    this.#infinite = infinite;
    this.#gaps = gaps;
    this.reader = new CaptureReader(fd, { u8: views.u8, dv: views.dv, off, bytes });
  }

  /** Fills the burst with the frames that are next. They stay where they are until the next call. */
  receive(burst: Burst): void {
    burst.clear();
    if (this.state !== SOURCE_OPEN) return;
    if (this.#gaps) this.#clock.read();
    const { reader } = this;
    while (burst.count < burst.limit) {
      if (!this.#waits && !this.#next(burst.count > 0)) return;
      this.#waits = this.#gaps && this.#untilDue() > 0;
      if (this.#waits) return;
      this.#frames++;
      addFrame(burst, this.#views, reader.off, reader.len);
    }
  }

  /** Goes to the next frame. @param begun the burst has frames of the buffer, which must stay @returns false if there is none now */
  #next(begun: boolean): boolean {
    const { reader } = this;
    for (;;) {
      const said = reader.next();
      if (said === READ_FRAME) return true;
      const again = said === READ_END && this.#infinite && this.#frames > 0;
      if (said !== READ_FILL && !again) {
        // what is in the burst comes first
        if (!begun) this.state = said === READ_END ? SOURCE_END : SOURCE_FAULT;
        return false;
      }
      if (begun) return false;
      if (again) {
        reader.rewind();
        this.#frames = 0;
      } else reader.fill();
    }
  }

  /** Nanoseconds until the frame at hand is due; 0 or less: now. */
  #untilDue(): number {
    const time = this.#time;
    this.reader.readTime(time);
    if (this.#frames === 0 && !this.#waits) {
      this.#firstSec = time.sec;
      this.#firstNsec = time.nsec;
      this.#startSec = this.#clock.sec;
      this.#startNsec = this.#clock.nsec;
    }
    const due = (time.sec - this.#firstSec) * 1e9 + time.nsec - this.#firstNsec;
    return due - ((this.#clock.sec - this.#startSec) * 1e9 + this.#clock.nsec - this.#startNsec);
  }

  /** True if nothing comes for so long that the thread may sleep. */
  get idle(): boolean {
    if (this.state !== SOURCE_OPEN) return true;
    if (!this.#waits) return false;
    this.#clock.read();
    return this.#untilDue() > SHORT_WAIT;
  }
}
