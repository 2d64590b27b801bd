/**
 * Does what a packet leaves undone, for receivers that do not take it so: completes its checksum, and cuts it into segments or
 * fragments.
 *
 * The packet's bytes go from the guest's memory straight to where they belong in bounce memory, each read once: first the headers,
 * which are then checked there, then the payload, frame by frame behind room for the frame's headers.
 */
import { CopyStage, MAX_COPY_ENTRIES } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { addOnes, checksumOf, completeChecksum, onesSum } from '../net/checksum.ts';
import { FRAGMENT_UNIT, finishFragment } from '../net/fragment.ts';
import { FrameHeaders } from '../net/headers.ts';
import { finishTcpSegment, finishUdpSegment, pseudoSumWithoutLength } from '../net/segment.ts';
import {
  ETHHDR,
  IPHDR,
  IPPROTO_TCP,
  IPPROTO_UDP,
  IPV6_FRAG_HDR,
  IPV6HDR,
  TCPHDR,
  UDPHDR,
  VLAN_HLEN,
} from '../uapi/ip.ts';
import {
  VIRTIO_NET_HDR_GSO_ECN,
  VIRTIO_NET_HDR_GSO_NONE,
  VIRTIO_NET_HDR_GSO_TCPV4,
  VIRTIO_NET_HDR_GSO_TCPV6,
  VIRTIO_NET_HDR_GSO_UDP,
  VIRTIO_NET_HDR_GSO_UDP_L4,
  VIRTIO_NET_HDR_MRG_RXBUF,
} from '../uapi/virtio-net.ts';
import type { SegmentList } from '../virtqueue/segments.ts';
import { type Burst, HEADER_BYTES } from './burst.ts';

const { off: HDR } = VIRTIO_NET_HDR_MRG_RXBUF;

const MAX_IP_LEN = 65535;
/** The largest packet with something left undone, bytes: two VLAN tags, an IPv6 header, and what its length field can say. */
export const MAX_GSO_BYTES = ETHHDR.size + 2 * VLAN_HLEN + IPV6HDR.size + MAX_IP_LEN;
/** Frames that a packet may become, and that the stage holds. */
export const MAX_OFFLOAD_FRAMES = 256;
/** All headers of a packet to be cut lie within so many bytes. */
const MAX_HEADER_BYTES = 512;
const ALIGN = 16;
/** Bounce memory that a frame takes beyond its payload, at most. */
const FRAME_OVERHEAD = MAX_HEADER_BYTES + IPV6_FRAG_HDR.size + ALIGN;
/** Bounce memory that the stage needs: then any packet fits when the stage is empty. */
export const MIN_BOUNCE_BYTES = MAX_HEADER_BYTES + MAX_OFFLOAD_FRAMES * FRAME_OVERHEAD + MAX_GSO_BYTES;

/** In place of a number of frames: the packet is malformed or would become too many; or the stage has no room before `reset`. */
export const OFFLOAD_MALFORMED = -1;
export const OFFLOAD_FULL = -2;

const align = (off: number) => (off + ALIGN - 1) & ~(ALIGN - 1);

/**
 * One thread's. The frames it makes are complete: they ask nothing of their receiver, so their device headers are zero but for
 * num_buffers, whoever gets them.
 */
export class OffloadStage {
  /** frames made since `reset` */
  count = 0;
  /** where each frame lies in the bounce window */
  readonly off = new Int32Array(MAX_OFFLOAD_FRAMES);
  /** bytes */
  readonly len = new Int32Array(MAX_OFFLOAD_FRAMES);
  /** id of the window that the frames lie in */
  readonly window: number;
  readonly #bounce: WindowViews;
  /** where the headers of a packet to be cut are read to */
  readonly #headersOff: number;
  readonly #framesOff: number;
  readonly #end: number;
  /** where the next frame may begin */
  #freeOff: number;
  readonly #headers = new FrameHeaders();
  readonly #copyStage = new CopyStage();
  /** entries waiting in the copy list, and the window they come from */
  #entries = 0;
  #from: WindowViews | undefined;
  /** the packet being read: what is left of it is `#left` bytes at `#at` of segment `#segment`, and those behind it up to `#endSegment` */
  #segment = 0;
  #endSegment = 0;
  #at = 0;
  #left = 0;
  /** and before that, bytes behind the headers that were read along with them */
  #readAhead = 0;
  #readAheadOff = 0;
  /** identification of the last IPv6 packet that was fragmented: a xorshift sequence, in which no number recurs for 2³² packets */
  #fragmentId = crypto.getRandomValues(new Uint32Array(1))[0] | 0 || 1;

  /**
   * @param bounce a window of this thread's table; of its memory, the stage alone writes to the `bytes` at `off`, at least MIN_BOUNCE_BYTES
   */
  constructor(bounce: WindowViews, off: number, bytes: number) {
    if (bytes < MIN_BOUNCE_BYTES + ALIGN)
      throw new RangeError(`${bytes} bytes of bounce memory: give ${MIN_BOUNCE_BYTES + ALIGN} at least`);
    this.window = bounce.id;
    this.#bounce = bounce;
    this.#headersOff = align(off);
    this.#framesOff = this.#headersOff + MAX_HEADER_BYTES;
    this.#freeOff = this.#framesOff;
    this.#end = off + bytes;
  }

  /** Forgets all frames: they have been copied to where they go. */
  reset(): void {
    this.count = 0;
    this.#freeOff = this.#framesOff;
  }

  /** As `convert`, for packet `i` of a burst. */
  convertPacket(windows: readonly WindowViews[], { segments, first, len, header }: Burst, i: number): number {
    const at = HEADER_BYTES * i;
    return this.convert(
      windows,
      segments,
      first[i],
      first[i + 1],
      len[i],
      header.getUint8(at + HDR.gso_type),
      header.getUint16(at + HDR.gso_size, true),
      header.getUint16(at + HDR.csum_start, true),
      header.getUint16(at + HDR.csum_offset, true),
    );
  }

  /**
   * Does what a packet leaves undone and adds the frames it becomes: count − n … count − 1, in order. What goes in has been
   * through `needsOf`, but nothing here counts on it.
   * @param windows the thread's table, by window id
   * @param segments the packet is the first `len` bytes of segments `first` … `end` − 1, without the device header
   * @param gsoType `gso_type` and what follows: as the driver wrote them, with NEEDS_CSUM set
   * @returns n, or OFFLOAD_MALFORMED, or OFFLOAD_FULL, which an empty stage never is; nothing is added then
   */
  convert(
    windows: readonly WindowViews[],
    segments: SegmentList,
    first: number,
    end: number,
    len: number,
    gsoType: number,
    gsoSize: number,
    csumStart: number,
    csumOffset: number,
  ): number {
    if (len > MAX_GSO_BYTES) return OFFLOAD_MALFORMED;
    this.#readAhead = 0;
    this.#left = 0;
    this.#segment = first - 1;
    this.#endSegment = end;
    if (gsoType === VIRTIO_NET_HDR_GSO_NONE) return this.#complete(windows, segments, len, csumStart, csumOffset);
    const unit = gsoType === VIRTIO_NET_HDR_GSO_UDP ? FRAGMENT_UNIT : 1;
    if (gsoSize < unit) return OFFLOAD_MALFORMED;
    const most = Math.min(Math.ceil(len / (gsoSize - (gsoSize % unit))), MAX_OFFLOAD_FRAMES);
    if (!this.#hasRoom(most, len + most * FRAME_OVERHEAD)) return OFFLOAD_FULL;
    const head = Math.min(len, MAX_HEADER_BYTES);
    if (!this.#read(windows, segments, this.#headersOff, head)) return OFFLOAD_MALFORMED;
    this.#flush();
    if (!this.#headersMatch(head, len, gsoType, csumStart, csumOffset)) return OFFLOAD_MALFORMED;
    if (gsoType !== VIRTIO_NET_HDR_GSO_UDP) return this.#segments(windows, segments, len, head, gsoSize);
    return this.#fragments(windows, segments, len, head, gsoSize);
  }

  /** True if so many frames of so many bytes together are sure to fit. */
  #hasRoom(frames: number, bytes: number): boolean {
    return this.count === 0 || (this.count + frames <= MAX_OFFLOAD_FRAMES && this.#freeOff + bytes <= this.#end);
  }

  /** A packet that needs no more than its checksum. */
  #complete(
    windows: readonly WindowViews[],
    segments: SegmentList,
    len: number,
    csumStart: number,
    csumOffset: number,
  ): number {
    if (csumStart < ETHHDR.size + IPHDR.size || csumStart + csumOffset + 2 > len) return OFFLOAD_MALFORMED;
    if (!this.#hasRoom(1, len)) return OFFLOAD_FULL;
    const off = this.#freeOff;
    if (!this.#read(windows, segments, off, len)) return OFFLOAD_MALFORMED;
    this.#flush();
    completeChecksum(this.#bounce.dv, off + csumStart, len - csumStart, csumOffset);
    this.#add(off, len);
    return 1;
  }

  /** Reads the packet's headers, of which `head` bytes are there. @returns true if they are what `gsoType` says */
  #headersMatch(head: number, len: number, gsoType: number, csumStart: number, csumOffset: number): boolean {
    const headers = this.#headers;
    const { dv } = this.#bounce;
    if (!headers.parse(dv, this.#headersOff, head) || headers.transportOff !== csumStart) return false;
    const { ipVersion, ipOff, protocol } = headers;
    if (len - ipOff > (ipVersion === 4 ? MAX_IP_LEN : IPV6HDR.size + MAX_IP_LEN)) return false;
    const type = gsoType & ~VIRTIO_NET_HDR_GSO_ECN;
    if (type === VIRTIO_NET_HDR_GSO_TCPV4 || type === VIRTIO_NET_HDR_GSO_TCPV6) {
      if (ipVersion !== (type === VIRTIO_NET_HDR_GSO_TCPV4 ? 4 : 6)) return false;
      return protocol === IPPROTO_TCP && csumOffset === TCPHDR.off.check;
    }
    if (gsoType !== VIRTIO_NET_HDR_GSO_UDP && gsoType !== VIRTIO_NET_HDR_GSO_UDP_L4) return false;
    return protocol === IPPROTO_UDP && csumOffset === UDPHDR.off.check;
  }

  /** Cuts the packet into TCP segments or UDP datagrams of at most `gsoSize` bytes of payload. */
  #segments(
    windows: readonly WindowViews[],
    segments: SegmentList,
    len: number,
    head: number,
    gsoSize: number,
  ): number {
    const headers = this.#headers;
    const { dv } = this.#bounce;
    const { payloadOff } = headers;
    const n = this.#lay(windows, segments, len, head, payloadOff, 0, gsoSize);
    if (n < 0) return n;
    const pseudoSum = pseudoSumWithoutLength(dv, this.#headersOff, len, headers);
    const tcp = headers.protocol === IPPROTO_TCP;
    for (let i = 0; i < n; i++) {
      const off = this.off[this.count + i];
      const frameLen = this.len[this.count + i];
      if (tcp) finishTcpSegment(dv, off, frameLen, headers, pseudoSum, i, gsoSize, i === n - 1);
      else finishUdpSegment(dv, off, frameLen, headers, pseudoSum, i);
    }
    this.count += n;
    return n;
  }

  /** Cuts the packet into IP fragments of at most `gsoSize` bytes of what the IP packet carries. */
  #fragments(
    windows: readonly WindowViews[],
    segments: SegmentList,
    len: number,
    head: number,
    gsoSize: number,
  ): number {
    const headers = this.#headers;
    const { dv } = this.#bounce;
    const { fragmentOff, transportOff } = headers;
    if (dv.getUint16(this.#headersOff + transportOff + UDPHDR.off.len) !== len - transportOff) return OFFLOAD_MALFORMED;
    const whole = len - fragmentOff <= gsoSize;
    const size = whole ? gsoSize : gsoSize - (gsoSize % FRAGMENT_UNIT);
    // The first fragment has all headers (RFC 7112), and so the checksum.
    if (size < transportOff + UDPHDR.size - fragmentOff) return OFFLOAD_MALFORMED;
    const room = whole || headers.ipVersion === 4 ? 0 : IPV6_FRAG_HDR.size;
    const n = this.#lay(windows, segments, len, head, fragmentOff, room, size);
    if (n < 0) return n;
    const udpAt = this.off[this.count] + transportOff + room;
    let sum = onesSum(dv, udpAt, this.len[this.count] - transportOff - room);
    for (let i = 1; i < n; i++) {
      const from = fragmentOff + room;
      sum = addOnes(sum, onesSum(dv, this.off[this.count + i] + from, this.len[this.count + i] - from));
    }
    dv.setUint16(udpAt + UDPHDR.off.check, checksumOf(sum));
    if (!whole) {
      const id = this.#nextFragmentId();
      for (let i = 0; i < n; i++) {
        const frame = this.count + i;
        finishFragment(dv, this.off[frame], this.len[frame], headers, i * size, i === n - 1, id);
      }
    }
    this.count += n;
    return n;
  }

  #nextFragmentId(): number {
    let id = this.#fragmentId;
    id ^= id << 13;
    id ^= id >>> 17;
    id ^= id << 5;
    this.#fragmentId = id;
    return id;
  }

  /**
   * Lays the packet out as frames from `count` on: its first `headerLen` bytes, `room` bytes, and `size` bytes of the rest, in the last
   * one what is left. `head` bytes of it have been read to `#headersOff`. @returns frames, or OFFLOAD_MALFORMED
   */
  #lay(
    windows: readonly WindowViews[],
    segments: SegmentList,
    len: number,
    head: number,
    headerLen: number,
    room: number,
    size: number,
  ): number {
    const n = Math.max(1, Math.ceil((len - headerLen) / size));
    if (n > MAX_OFFLOAD_FRAMES) return OFFLOAD_MALFORMED;
    let next = this.#freeOff;
    let left = len - headerLen;
    for (let i = 0; i < n; i++) {
      const part = Math.min(left, size);
      this.off[this.count + i] = next;
      this.len[this.count + i] = headerLen + room + part;
      this.#copy(this.#bounce, this.#headersOff, next, headerLen);
      next = align(next + headerLen + room + part);
      left -= part;
    }
    this.#readAhead = head - headerLen;
    this.#readAheadOff = this.#headersOff + headerLen;
    for (let i = 0; i < n; i++) {
      const to = this.off[this.count + i] + headerLen + room;
      const part = this.len[this.count + i] - headerLen - room;
      if (!this.#read(windows, segments, to, part)) return OFFLOAD_MALFORMED;
    }
    this.#flush();
    this.#freeOff = next;
    return n;
  }

  /** Lists copies of the packet's next `len` bytes to `to`. @returns false if it ends before */
  #read(windows: readonly WindowViews[], segments: SegmentList, to: number, len: number): boolean {
    const ahead = Math.min(this.#readAhead, len);
    if (ahead > 0) {
      this.#copy(this.#bounce, this.#readAheadOff, to, ahead);
      this.#readAhead -= ahead;
      this.#readAheadOff += ahead;
    }
    let done = ahead;
    while (done < len) {
      if (this.#left === 0) {
        if (++this.#segment >= this.#endSegment) {
          this.#entries = 0;
          return false;
        }
        this.#at = segments.off[this.#segment];
        this.#left = segments.len[this.#segment];
        continue;
      }
      const part = Math.min(this.#left, len - done);
      this.#copy(windows[segments.window[this.#segment]], this.#at, to + done, part);
      this.#at += part;
      this.#left -= part;
      done += part;
    }
    return true;
  }

  #copy(from: WindowViews, fromOff: number, to: number, len: number): void {
    if (from !== this.#from || this.#entries === MAX_COPY_ENTRIES) {
      this.#flush();
      this.#from = from;
    }
    const { list } = this.#copyStage;
    const at = 3 * this.#entries++;
    list[at] = fromOff;
    list[at + 1] = to;
    list[at + 2] = len;
  }

  #flush(): void {
    if (this.#entries > 0) this.#copyStage.flush(this.#from as WindowViews, this.#bounce, this.#entries);
    this.#entries = 0;
  }

  #add(off: number, len: number): void {
    this.off[this.count] = off;
    this.len[this.count] = len;
    this.count++;
    this.#freeOff = align(off + len);
  }
}
