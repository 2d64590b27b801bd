#!/usr/bin/env node
/**
 * A disk for a virtual machine: virtio-blk on a file, over vhost-user.
 *
 *   truncate -s 1G disk.img
 *   node --conditions=source examples/vhost-user-blk.ts --socket-path ./disk.sock --blk-file disk.img
 *   qemu-system-x86_64 -M q35,memory-backend=mem -object memory-backend-memfd,id=mem,size=1G,share=on …
 *     -chardev socket,id=disk,path=./disk.sock,reconnect=1 -device vhost-user-blk-pci,chardev=disk
 *
 * `--conditions=source` is for a checkout; where the package is installed it is not needed.
 * The file's bytes go to and from guest memory by readv and writev, without a copy in between.
 * @see VIRTIO 1.2 §5.2; linux/virtio_blk.h
 */
import { type FileHandle, open } from 'node:fs/promises';
import {
  ConfigError,
  type DeviceType,
  FLAG,
  featureMask,
  GuestBuffer,
  hasFeature,
  integer,
  layout,
  packedLayout,
  ReadOnlyConfig,
  runBackEnd,
  TEXT,
  type VirtioRequest,
} from 'vhost-switch';

const VIRTIO_BLK_F_SIZE_MAX = 1;
const VIRTIO_BLK_F_SEG_MAX = 2;
const VIRTIO_BLK_F_RO = 5;
const VIRTIO_BLK_F_BLK_SIZE = 6;
const VIRTIO_BLK_F_FLUSH = 9;
const VIRTIO_BLK_F_CONFIG_WCE = 11;
const VIRTIO_BLK_F_MQ = 12;
const VIRTIO_BLK_F_WRITE_ZEROES = 14;

const VIRTIO_BLK_T_IN = 0;
const VIRTIO_BLK_T_OUT = 1;
const VIRTIO_BLK_T_FLUSH = 4;
const VIRTIO_BLK_T_GET_ID = 8;
const VIRTIO_BLK_T_WRITE_ZEROES = 13;

const VIRTIO_BLK_S_OK = 0;
const VIRTIO_BLK_S_IOERR = 1;
const VIRTIO_BLK_S_UNSUPP = 2;

const VIRTIO_BLK_ID_BYTES = 20;
const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;
/** Unit of capacity, of `sector` in requests, and of what they move, bytes. */
const SECTOR = 512;
/** Segments of a request: with header and status they fit a ring of 128 descriptors, which QEMU has. */
const SEG_MAX = 126;
const SIZE_MAX = 2 ** 20;
/** Sectors that one request may have set to zero. */
const MAX_ZEROES = 8192;
const ZEROES = new Uint8Array(64 * 1024);

const { size: CONFIG_SIZE, off: CONFIG } = packedLayout('virtio_blk_config', {
  capacity: 'u64',
  size_max: 'u32',
  seg_max: 'u32',
  geometry: 'u32',
  blk_size: 'u32',
  topology: 'u64',
  wce: 'u8',
  unused: 'u8',
  num_queues: 'u16',
  discard: ['u32', 3],
  max_write_zeroes_sectors: 'u32',
  max_write_zeroes_seg: 'u32',
  write_zeroes_may_unmap: 'u8',
  unused1: ['u8', 3],
});
const { size: HEADER_SIZE, off: HEADER } = layout('virtio_blk_outhdr', { type: 'u32', ioprio: 'u32', sector: 'u64' });
const { size: RANGE_SIZE, off: RANGE } = layout('virtio_blk_discard_write_zeroes', {
  sector: 'u64',
  num_sectors: 'u32',
  flags: 'u32',
});

interface DiskFile {
  readonly handle: FileHandle;
  readonly name: string;
  readonly sectors: number;
  readonly readOnly: boolean;
}

/** The driver should have known better: it gets an answer, and the device has not failed. */
class Refusal extends Error {
  readonly status: number;

  constructor(status: number) {
    super(`refused with status ${status}`);
    this.status = status;
  }
}

class Disk implements DeviceType {
  readonly features: bigint;
  readonly queues: number;
  readonly config = new Uint8Array(CONFIG_SIZE);
  readonly #file: DiskFile;
  #errorTold = false;

  constructor(file: DiskFile, queues: number) {
    this.#file = file;
    this.queues = queues;
    this.features =
      featureMask(VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH) |
      featureMask(VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_WRITE_ZEROES) |
      (queues > 1 ? featureMask(VIRTIO_BLK_F_MQ) : 0n) |
      (file.readOnly ? featureMask(VIRTIO_BLK_F_RO) : 0n);
    const view = new DataView(this.config.buffer);
    view.setBigUint64(CONFIG.capacity, BigInt(file.sectors), true);
    view.setUint32(CONFIG.size_max, SIZE_MAX, true);
    view.setUint32(CONFIG.seg_max, SEG_MAX, true);
    view.setUint32(CONFIG.blk_size, SECTOR, true);
    view.setUint8(CONFIG.wce, 1);
    view.setUint16(CONFIG.num_queues, queues, true);
    view.setUint32(CONFIG.max_write_zeroes_sectors, MAX_ZEROES, true);
    view.setUint32(CONFIG.max_write_zeroes_seg, 1, true);
  }

  /** A driver may choose between writeback and writethrough, and nothing else (§5.2.4). */
  writeConfig(offset: number, bytes: Uint8Array): void {
    if (offset !== CONFIG.wce || bytes.length !== 1 || bytes[0] > 1) throw new ReadOnlyConfig(offset, bytes.length);
    this.config.set(bytes, offset);
  }

  async onRequest(request: VirtioRequest): Promise<number> {
    const { writable } = request;
    // the last byte is for the status; without it nothing can be answered
    if (writable.length === 0) return 0;
    const status = await this.#do(request).then(() => VIRTIO_BLK_S_OK, this.#statusOf);
    writable.write(Uint8Array.of(status), writable.length - 1);
    return writable.length;
  }

  readonly #statusOf = (error: Error): number => {
    if (error instanceof Refusal) return error.status;
    if (!this.#errorTold) console.error(`${this.#file.name}: ${error.message}; this is told once`);
    this.#errorTold = true;
    return VIRTIO_BLK_S_IOERR;
  };

  async #do({ readable, writable, features }: VirtioRequest): Promise<void> {
    if (readable.length < HEADER_SIZE) throw new Refusal(VIRTIO_BLK_S_IOERR);
    const header = new DataView(readable.read(0, HEADER_SIZE).buffer);
    const sector = header.getBigUint64(HEADER.sector, true);
    const out = readable.slice(HEADER_SIZE);
    const room = writable.slice(0, writable.length - 1);
    switch (header.getUint32(HEADER.type, true)) {
      case VIRTIO_BLK_T_IN:
        return this.#move('read', room, this.#position(sector, room.length));
      case VIRTIO_BLK_T_OUT:
        await this.#move('write', out, this.#position(sector, out.length));
        return this.#writtenThrough(features);
      case VIRTIO_BLK_T_FLUSH:
        return this.#file.readOnly ? undefined : this.#file.handle.datasync();
      case VIRTIO_BLK_T_GET_ID: {
        const id = new Uint8Array(VIRTIO_BLK_ID_BYTES);
        new TextEncoder().encodeInto(this.#file.name, id);
        return room.write(id.subarray(0, room.length));
      }
      case VIRTIO_BLK_T_WRITE_ZEROES:
        await this.#writeZeroes(out);
        return this.#writtenThrough(features);
      default:
        throw new Refusal(VIRTIO_BLK_S_UNSUPP);
    }
  }

  /** Where in the file `bytes` from `sector` on lie: whole sectors, all of which are there. */
  #position(sector: bigint, bytes: number): number {
    const capacity = this.#file.sectors;
    const fits = sector < BigInt(capacity) && bytes <= (capacity - Number(sector)) * SECTOR;
    if (bytes % SECTOR !== 0 || !(fits || bytes === 0)) throw new Refusal(VIRTIO_BLK_S_IOERR);
    return Number(sector) * SECTOR;
  }

  /** Reads or writes all of it: the file may take less at a time. */
  async #move(way: 'read' | 'write', memory: GuestBuffer, position: number): Promise<void> {
    const { handle, readOnly } = this.#file;
    if (readOnly && way === 'write') throw new Refusal(VIRTIO_BLK_S_IOERR);
    let left = memory;
    for (let at = position; left.length > 0; ) {
      const { pieces } = left;
      const n =
        way === 'read' ? (await handle.readv(pieces, at)).bytesRead : (await handle.writev(pieces, at)).bytesWritten;
      if (n === 0) throw new Error('the file has become shorter');
      at += n;
      left = left.slice(n);
    }
  }

  /** One range a request, as the config space says; UNMAP is a wish that need not be granted. */
  async #writeZeroes(ranges: GuestBuffer): Promise<void> {
    if (ranges.length !== RANGE_SIZE) throw new Refusal(VIRTIO_BLK_S_IOERR);
    const range = new DataView(ranges.read().buffer);
    const unknown = range.getUint32(RANGE.flags, true) & ~VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    const sectors = range.getUint32(RANGE.num_sectors, true);
    if (unknown !== 0) throw new Refusal(VIRTIO_BLK_S_UNSUPP);
    if (sectors > MAX_ZEROES) throw new Refusal(VIRTIO_BLK_S_IOERR);
    const position = this.#position(range.getBigUint64(RANGE.sector, true), sectors * SECTOR);
    const zeroes = new GuestBuffer(Array(Math.ceil((sectors * SECTOR) / ZEROES.length)).fill(ZEROES));
    await this.#move('write', zeroes.slice(0, sectors * SECTOR), position);
  }

  /** Without a writeback cache what is written is on the disk when the driver hears of it (§5.2.6.2). */
  async #writtenThrough(features: bigint): Promise<void> {
    const writeback = hasFeature(features, VIRTIO_BLK_F_CONFIG_WCE)
      ? this.config[CONFIG.wce] === 1
      : hasFeature(features, VIRTIO_BLK_F_FLUSH);
    if (!writeback) await this.#file.handle.datasync();
  }
}

async function openDisk(path: string, readOnly: boolean): Promise<DiskFile> {
  const handle = await open(path, readOnly ? 'r' : 'r+');
  const stat = await handle.stat();
  const sectors = Math.floor(stat.size / SECTOR);
  if (stat.isFile() && sectors > 0) return { handle, name: path.slice(-VIRTIO_BLK_ID_BYTES), sectors, readOnly };
  await handle.close();
  throw new ConfigError('CONFIG_INVALID_VALUE', '--blk-file', 'must be a regular file of at least 512 bytes', {
    value: path,
  });
}

await runBackEnd({
  name: 'vhost-user-blk',
  summary: 'Gives a virtual machine a disk whose sectors are in a file: virtio-blk over vhost-user.',
  type: 'block',
  features: ['read-only', 'blk-file'],
  options: {
    blkFile: { long: 'blk-file', value: 'PATH', type: TEXT, help: 'file with the disk’s sectors' },
    readOnly: { long: 'read-only', type: FLAG, help: 'the disk cannot be written' },
    queues: { long: 'num-queues', value: 'COUNT', type: integer(1, 64), default: '8', help: 'queues on offer' },
  },
  async start({ blkFile, readOnly = false, queues }) {
    if (blkFile === undefined) throw new ConfigError('CONFIG_MISSING_VALUE', '--blk-file', 'is missing');
    const file = await openDisk(blkFile, readOnly);
    return { createDevice: () => new Disk(file, queues), close: () => file.handle.close() };
  },
});
