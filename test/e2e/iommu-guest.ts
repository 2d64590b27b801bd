/** A guest behind an IOMMU: all that its driver tells is I/O virtual, page by page somewhere else in its memory, and moves about. */
import assert from 'node:assert/strict';
import { DEFAULT_FEATURES } from '../../src/port/virtio-user.ts';
import { addressOf } from '../../src/sys/libc.ts';
import { createMemfd, mapShared } from '../../src/sys/memory.ts';
import { VHOST_ACCESS_RW, VHOST_USER_PROTOCOL_F_BACKEND_REQ } from '../../src/uapi/vhost-user.ts';
import { featureMask, VIRTIO_F_ACCESS_PLATFORM } from '../../src/uapi/virtio.ts';
import { StepCard, type StepCardOptions } from './step-card.ts';

export const PAGE = 4096;
/** Where the driver sees its memory, where the guest has it, and where its front end: nothing may be taken for another. */
const IOVA = 0x7_fff0_0000;
const GPA = 0x10_0000;
const HVA = 0x7e00_0000_0000;
const CANARY = 0xd1;

export interface IommuOptions extends Omit<StepCardOptions, 'memory' | 'table' | 'ringAddr'> {
  /** pages that the driver sees; the memory has twice as many more for those that move */
  readonly pages?: number;
  /** What a translation that is asked for may do: none at all, read, write. Default both. */
  readonly allow?: (page: number) => number;
}

export class IommuGuest {
  readonly card: StepCard;
  readonly pages: number;
  /** translations that the switch has asked for */
  misses = 0;
  /** answers that it was given */
  answers = 0;
  allow: (page: number) => number;
  #fd: number;
  /** by page of the driver's, the memory's */
  readonly #place: number[];
  readonly #spare: number[];
  readonly #retired: number[] = [];
  #moving: Promise<void> = Promise.resolve();

  static async connect(options: IommuOptions): Promise<IommuGuest> {
    const pages = options.pages ?? 1024;
    const fd = createMemfd('iommu', 3 * pages * PAGE);
    const size = 3 * pages * PAGE;
    const card = await StepCard.connect({
      ...options,
      features: (options.features ?? DEFAULT_FEATURES) | featureMask(VIRTIO_F_ACCESS_PLATFORM),
      protocol: [...(options.protocol ?? []), VHOST_USER_PROTOCOL_F_BACKEND_REQ],
      memory: [{ guestAddr: IOVA, size: pages * PAGE, fd }],
      table: () => [{ guestAddr: GPA, size, frontendAddr: HVA, fileOff: 0, fd }],
      ringAddr: (_, addr) => addr,
    });
    const guest = new IommuGuest(card, fd, pages, options.allow);
    await card.frontEnd.openChannel({
      onIotlbMiss: (iova, permissions) => guest.#onMiss(Number(iova), permissions),
      onVringCall: () => assert.fail('in-band'),
    });
    return guest;
  }

  private constructor(card: StepCard, fd: number, pages: number, allow = (_: number) => VHOST_ACCESS_RW) {
    this.card = card;
    this.pages = pages;
    this.allow = allow;
    this.#fd = fd;
    this.#place = Array.from({ length: pages }, (_, i) => i);
    this.#spare = Array.from({ length: 2 * pages }, (_, i) => pages + i);
    this.#scatter();
  }

  /** Pages that the two rings take: each of their parts must lie in one piece. */
  get ringPages(): number {
    const { driver, addr } = this.card.ring(1);
    return Math.ceil((addr - IOVA + driver.place.usedOff - driver.place.descOff + 8 * driver.size + 6) / PAGE);
  }

  /** No two buffer pages that the driver sees side by side are so. */
  #scatter(): void {
    for (let page = this.ringPages; page < this.pages; page++)
      this.#move(page, page + 1, this.#spare.shift() as number);
  }

  #bytes(page: number, end = page + 1): Uint8Array {
    const { ram } = this.card;
    const off = ram.offsetOf(IOVA) as number;
    return ram.views.u8.subarray(off + page * PAGE, off + end * PAGE);
  }

  /** Moves pages of the driver's, with what is in them, to the memory's page `to` and those behind it; the old ones get a canary. */
  #move(from: number, end: number, to: number): void {
    const { ram } = this.card;
    const window = addressOf(ram.views.u8.buffer) + BigInt(ram.offsetOf(IOVA) as number);
    const held = this.#bytes(from, end).slice();
    this.#bytes(from, end).fill(CANARY);
    mapShared(window + BigInt(from * PAGE), (end - from) * PAGE, this.#fd, to * PAGE);
    this.#bytes(from, end).set(held);
    for (let page = from; page < end; page++) {
      this.#retired.push(this.#place[page]);
      this.#place[page] = to + page - from;
    }
  }

  async #onMiss(iova: number, permissions: number): Promise<void> {
    this.misses++;
    assert.ok(iova >= IOVA && iova < IOVA + this.pages * PAGE, `0x${iova.toString(16)} is no address of the driver’s`);
    const page = Math.floor((iova - IOVA) / PAGE);
    // what moves has no place to tell
    await this.#moving;
    const allowed = this.allow(page);
    if ((allowed & permissions) !== permissions) return;
    await this.map(page, allowed);
  }

  /** Gives the translation of a page. */
  async map(page: number, permissions = VHOST_ACCESS_RW): Promise<void> {
    this.answers++;
    const userAddr = HVA + this.#place[page] * PAGE;
    await this.card.frontEnd.updateIotlb({ iova: IOVA + page * PAGE, size: PAGE, userAddr, permissions });
  }

  /** Gives a translation for an address that the driver does not use. */
  mapOther(page: number): Promise<void> {
    const iova = IOVA + (2 ** 20 + page) * PAGE;
    return this.card.frontEnd.updateIotlb({ iova, size: PAGE, userAddr: HVA, permissions: VHOST_ACCESS_RW });
  }

  /** Takes translations back, and when the switch has answered moves the pages away from where they were. */
  remap(from: number, end = from + 1): Promise<void> {
    const remapping = this.#remap(from, end);
    this.#moving = remapping;
    return remapping;
  }

  async #remap(from: number, end: number): Promise<void> {
    await this.card.frontEnd.invalidateIotlb(BigInt(IOVA + from * PAGE), BigInt((end - from) * PAGE));
    const to = this.#spare.splice(0, end - from);
    assert.ok(to.length === end - from && to.at(-1) === to[0] + to.length - 1, 'no room to move pages to');
    this.#move(from, end, to[0]);
  }

  /** Takes all translations back, without moving anything. */
  forget(): Promise<void> {
    return this.card.frontEnd.invalidateIotlb(0n, 0n);
  }

  /** Nobody has written to a page that the driver no longer has. */
  assertRetired(): number {
    const { ram } = this.card;
    const window = addressOf(ram.views.u8.buffer) + BigInt(ram.offsetOf(IOVA) as number);
    // looked at through the first page's place
    const held = this.#place[0];
    for (const page of this.#retired) {
      mapShared(window, PAGE, this.#fd, page * PAGE);
      const touched = this.#bytes(0).findIndex((byte) => byte !== CANARY);
      mapShared(window, PAGE, this.#fd, held * PAGE);
      assert.equal(touched, -1, `byte ${touched} of page ${page} has changed, which the driver no longer has`);
    }
    return this.#retired.length;
  }
}
