/**
 * A guest with a device of requests, of any type: what a front end and a driver do with it, over a real socket.
 */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { GuestRam } from '../../src/port/guest-ram.ts';
import { createEventfd, signal } from '../../src/sys/eventfd.ts';
import {
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from '../../src/uapi/vhost-user.ts';
import {
  featureMask,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../src/uapi/virtio.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { waitUntil } from '../peers/process.ts';
import { type Answer, RequestDriver } from './request-driver.ts';

const MIB = 2 ** 20;
const RING_SIZE = 128;
const BASE = featureMask(VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC);

export interface RequestGuestOptions {
  /** features of the device's type that the driver accepts where they are on offer */
  readonly features?: bigint;
  readonly packed?: boolean;
  readonly queues?: number;
}

interface Queue {
  readonly driver: RequestDriver;
  readonly kick: number;
  readonly call: number;
}

export class RequestGuest {
  readonly frontEnd: FrontEnd;
  readonly ram = new GuestRam([
    { guestAddr: 0, size: 8 * MIB },
    { guestAddr: 2 ** 32, size: 8 * MIB },
  ]);
  readonly queues: Queue[] = [];
  /** on offer; and in use */
  offered = 0n;
  features = 0n;

  private constructor(frontEnd: FrontEnd) {
    this.frontEnd = frontEnd;
  }

  /** Sets a device up as QEMU does. @param where a socket's path, or a connected socket, which is the guest's from then on */
  static async connect(where: string | number, options: RequestGuestOptions = {}): Promise<RequestGuest> {
    const frontEnd =
      typeof where === 'number' ? new FrontEnd(where) : await FrontEnd.connect(where, { deadlineMs: 5000 });
    const guest = new RequestGuest(frontEnd);
    try {
      await guest.#start(options);
      return guest;
    } catch (error) {
      guest.close();
      throw error;
    }
  }

  async #start({ features = 0n, packed = false, queues = 1 }: RequestGuestOptions): Promise<void> {
    const { frontEnd, ram } = this;
    this.offered = await frontEnd.getFeatures();
    const wanted = BASE | features | (packed ? featureMask(VIRTIO_F_RING_PACKED) : 0n);
    this.features = this.offered & (wanted | featureMask(VHOST_USER_F_PROTOCOL_FEATURES));
    const protocol = await frontEnd.getProtocolFeatures();
    const used = featureMask(VHOST_USER_PROTOCOL_F_CONFIG, VHOST_USER_PROTOCOL_F_MQ, VHOST_USER_PROTOCOL_F_REPLY_ACK);
    await frontEnd.setProtocolFeatures(protocol & used);
    await frontEnd.setOwner();
    await frontEnd.setFeatures(this.features);
    await frontEnd.setMemTable(ram.regions);
    for (let i = 0; i < queues; i++) await this.#addQueue(i, packed);
  }

  async #addQueue(i: number, packed: boolean): Promise<void> {
    const { frontEnd, ram } = this;
    const memory = { views: ram.views, alloc: (len: number, align?: number) => ram.alloc(len, align) };
    const driver = new RequestDriver(memory, RING_SIZE, { packed, eventIdx: true });
    const queue = { driver, kick: createEventfd(), call: createEventfd() };
    this.queues.push(queue);
    const at = ram.frontendAddrOf(driver.addr);
    const { descOff, availOff, usedOff } = driver.layout;
    await frontEnd.setVringNum(i, RING_SIZE);
    await frontEnd.setVringBase(i, driver.ring.vringBase);
    await frontEnd.setVringAddr(i, {
      flags: 0,
      descAddr: at + descOff,
      availAddr: at + availOff,
      usedAddr: at + usedOff,
      logAddr: 0,
    });
    await frontEnd.setVringKick(i, queue.kick);
    await frontEnd.setVringCall(i, queue.call);
    await frontEnd.setVringEnable(i, true);
  }

  /** Makes a request and waits for its answer. */
  async ask(
    says: readonly Uint8Array[],
    rooms: readonly number[],
    { queue = 0, indirect = false } = {},
  ): Promise<Answer> {
    const [answer] = await this.askAll([{ says, rooms }], { queue, indirect });
    return answer;
  }

  /** Makes requests all at once and waits for their answers, which come in that order. */
  async askAll(
    requests: readonly { readonly says: readonly Uint8Array[]; readonly rooms: readonly number[] }[],
    { queue = 0, indirect = false } = {},
  ): Promise<Answer[]> {
    const { driver, kick } = this.queues[queue];
    const ids = requests.map(({ says, rooms }) => driver.add(says, rooms, indirect));
    assert.ok(!ids.includes(-1), 'the ring has room for them');
    if (driver.ring.publish()) signal(kick);
    const answers: Answer[] = [];
    const collect = () => {
      for (let answer = driver.take(); answer !== undefined; answer = driver.take()) answers.push(answer);
      return answers.length === requests.length;
    };
    await waitUntil('the answers', collect, 5000, { everyMs: 2 });
    assert.deepEqual(
      answers.map(({ id }) => id),
      ids,
    );
    return answers;
  }

  close(): void {
    this.frontEnd.close();
    for (const { kick, call } of this.queues) {
      closeSync(kick);
      closeSync(call);
    }
    this.ram.close();
  }
}
