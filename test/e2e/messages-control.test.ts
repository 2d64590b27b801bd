/** What a front end may say of a device as a whole, while its rings run: address space, status, reset, config space, MTU. */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  REQUEST,
  VHOST_USER_NEED_REPLY,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_VERSION,
} from '../../src/uapi/vhost-user.ts';
import { featureMask, hasFeature } from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_CONFIG, VIRTIO_NET_S_LINK_UP } from '../../src/uapi/virtio-net.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import { encodeMessage, VRING_STATE } from '../../src/vhost-user/message.ts';
import { Lane, Traffic } from './lanes.ts';
import { BASIC_PROTOCOL, closeStepCards, StepCard } from './step-card.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, frame, macOf } from './traffic.ts';

const MIB = 2 ** 20;
const { off: CONFIG } = VIRTIO_NET_CONFIG;
/** ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK (VIRTIO 1.2 §2.1) */
const RUNNING = 1 | 2 | 4 | 8;

describe('device', { timeout: 60_000 }, () => {
  let running: SwitchProcess;
  before(async () => {
    running = await SwitchProcess.start(['--config-space', '1']);
  });
  afterEach(closeStepCards);
  after(() => running.kill());

  const peerOf = () => StepCard.started({ path: running.socket, mac: macOf(1) });

  for (const packed of [false, true])
    test(`GPA_ADDRESSES, ${packed ? 'packed' : 'split'}: ring addresses are guest physical`, async () => {
      const peer = await peerOf();
      const memory = [0x4000_0000, 0x1_8000_0000].map((guestAddr) => ({
        guestAddr,
        size: MIB,
        frontendAddr: guestAddr,
      }));
      const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_GPA_ADDRESSES];
      const card = await StepCard.started({
        ...{ path: running.socket, mac: macOf(2), memory, protocol, packed, ringSize: 64 },
        ringAddr: (_, addr) => addr,
      });
      assert.ok(hasFeature(card.protocolFeatures, VHOST_USER_PROTOCOL_F_GPA_ADDRESSES));
      const traffic = new Traffic([new Lane(peer, card, { window: 32 }), new Lane(card, peer)]).start();
      await traffic.comeMore(300);
      await traffic.stop();
    });

  test('GPA_ADDRESSES: a region with another user address is refused', async () => {
    const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_GPA_ADDRESSES];
    const card = await StepCard.connect({ path: running.socket, mac: macOf(2), protocol });
    await assert.rejects(card.frontEnd.setMemTable(card.regions), /SET_MEM_TABLE: the back end refuses/);
  });

  for (const how of ['SET_STATUS 0', 'RESET_DEVICE'] as const)
    for (const packed of [false, true])
      test(`${how} under traffic, ${packed ? 'packed' : 'split'}: the device begins anew with the memory that it had`, async () => {
        const peer = await peerOf();
        const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_STATUS, VHOST_USER_PROTOCOL_F_RESET_DEVICE];
        const card = await StepCard.started({ path: running.socket, mac: macOf(2), protocol, packed });
        const { frontEnd } = card;
        await frontEnd.setStatus(RUNNING);
        assert.equal(await frontEnd.getStatus(), RUNNING);
        const lanes = [new Lane(peer, card, { lossy: true }), new Lane(card, peer, { lossy: true })];
        const traffic = new Traffic(lanes).start();
        const files = running.mappedFiles;
        for (let turn = 0; turn < 5; turn++) {
          await traffic.comeMore(50);
          await traffic.whileHeld(async () => {
            if (how === 'RESET_DEVICE') await frontEnd.resetDevice();
            else await frontEnd.setStatus(0);
            assert.equal(await frontEnd.getStatus(), 0);
            const was = card.snapshot();
            await sleep(20);
            assert.deepEqual(card.snapshot(), was, 'a device that has been reset writes nothing');
            // the driver begins anew, too: what was on the way is lost
            for (const pair of card.pairs) pair.reset();
            await frontEnd.setFeatures(card.features);
            await card.enable();
            for (const index of card.vrings) {
              const { driver } = card.ring(index);
              await frontEnd.setVringNum(index, driver.size);
              await frontEnd.setVringBase(index, driver.vringBase);
              await frontEnd.setVringAddr(index, card.addresses(index));
              await frontEnd.setVringKick(index, card.ring(index).kickFd);
            }
            await frontEnd.setStatus(RUNNING);
            card.awake();
          });
        }
        await traffic.comeMore(50);
        assert.equal(running.mappedFiles, files);
        await traffic.stop();
      });

  test('one ring is stopped and starts with another size, while the other goes on', async () => {
    const peer = await peerOf();
    const path = running.socket;
    // the same memory, the same rings: the second card's are the first one's, of another size
    const card = await StepCard.started({ path, mac: macOf(2), ringSize: 256 });
    const small = await StepCard.connect({ path, mac: macOf(3), ringSize: 64 });
    const { frontEnd } = card;
    const incoming = new Lane(peer, card);
    const traffic = new Traffic([incoming]).start();
    await traffic.comeMore(100);
    assert.equal(await frontEnd.getVringBase(1), 0);
    // its driver resets the transmit queue, and has made another one in the same memory
    const tx = small.pairs[0].tx;
    await frontEnd.addMemReg({ ...small.regions[0], guestAddr: 2 ** 33, frontendAddr: 2 ** 44 });
    await frontEnd.setVringNum(1, tx.ring.size);
    await frontEnd.setVringBase(1, 0);
    const { driver, addr } = small.ring(1);
    const at = 2 ** 44 + addr - small.regions[0].guestAddr;
    const { descOff, availOff, usedOff } = driver.place;
    await frontEnd.setVringAddr(1, {
      ...{ flags: 0, logAddr: 0 },
      ...{ descAddr: at, availAddr: at + availOff - descOff, usedAddr: at + usedOff - descOff },
    });
    await frontEnd.setVringKick(1, small.ring(1).kickFd);
    await frontEnd.setVringCall(1, small.ring(1).callFd);
    await traffic.comeMore(100);
    await traffic.stop();
    // its buffers are named by addresses that the device knows only there
    const moved = tx.ring.add.bind(tx.ring);
    tx.ring.add = (chain, n) =>
      moved(
        chain.map((one) => ({ ...one, addr: one.addr - small.regions[0].guestAddr + 2 ** 33 })),
        n,
      );
    small.pairs[0].connected();
    const sent = Array.from({ length: 200 }, (_, n) => frame(peer.mac, card.mac, n, 60 + n));
    await assertDelivered(small, peer, sent);
  });

  test('VRING_ENDIAN is not on offer, and who sends it all the same is refused', async () => {
    const card = await StepCard.started({ path: running.socket, mac: macOf(2) });
    await assert.rejects(card.frontEnd.setVringEndian(0, false), /the back end refuses|closed/);
    const other = await StepCard.started({ path: running.socket, mac: macOf(3), protocol: [] });
    const mark = running.mark;
    await other.frontEnd.sendRaw(
      encodeMessage(
        REQUEST.SET_VRING_ENDIAN,
        VHOST_USER_VERSION | VHOST_USER_NEED_REPLY,
        VRING_STATE.encode({ index: 0, num: 1 }),
      ),
    );
    await running.line(/SET_VRING_ENDIAN: protocol feature bit 6 was not negotiated; /, mark);
  });

  test('the config space can be read, and written as far as that is allowed; the MTU goes there', async () => {
    const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_CONFIG, VHOST_USER_PROTOCOL_F_MTU];
    const peer = await peerOf();
    const card = await StepCard.started({ path: running.socket, mac: macOf(2), protocol });
    const { frontEnd } = card;
    const word = async (off: number) => Buffer.from(await frontEnd.getConfig(off, 2)).readUInt16LE();
    assert.equal(await word(CONFIG.status), VIRTIO_NET_S_LINK_UP);
    assert.equal(await word(CONFIG.max_virtqueue_pairs), 128);
    assert.equal(await word(CONFIG.mtu), 1500);
    await frontEnd.netSetMtu(9000);
    assert.equal(await word(CONFIG.mtu), 9000);
    await assert.rejects(frontEnd.netSetMtu(67), /NET_SET_MTU: the back end refuses/);
    assert.equal(await word(CONFIG.mtu), 9000);
    // a driver of VIRTIO 1.0 or later may write nothing; migration restores all
    const mac = Buffer.from(card.macBytes);
    await assert.rejects(frontEnd.setConfig(CONFIG.mac, mac), /SET_CONFIG: the back end refuses/);
    await frontEnd.setConfig(CONFIG.mac, mac, true);
    assert.deepEqual(Buffer.from(await frontEnd.getConfig(CONFIG.mac, 6)), mac);
    await assert.rejects(frontEnd.getConfig(VIRTIO_NET_CONFIG.size - 1, 2), /GET_CONFIG: the back end refuses/);
    await assert.rejects(frontEnd.setConfig(VIRTIO_NET_CONFIG.size, mac, true), /SET_CONFIG: the back end refuses/);
    // a legacy driver writes its address
    const features = card.features & ~featureMask(32);
    await frontEnd.setFeatures(features);
    const other = Buffer.from(macOf(9).replaceAll(':', ''), 'hex');
    await frontEnd.setConfig(CONFIG.mac, other);
    assert.deepEqual(Buffer.from(await frontEnd.getConfig(CONFIG.mac, 6)), other);
    await assert.rejects(frontEnd.setConfig(CONFIG.status, Buffer.alloc(2)), /SET_CONFIG: the back end refuses/);
    await frontEnd.setFeatures(card.features);
    await assertDelivered(card, peer, [frame(peer.mac, card.mac)]);
  });

  test('a status of more than 8 bits and calls without descriptors: refused, taken', async () => {
    const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_STATUS];
    const card = await StepCard.started({ path: running.socket, mac: macOf(2), protocol });
    await assert.rejects(card.frontEnd.setStatus(256), /SET_STATUS: the back end refuses/);
    await card.frontEnd.setStatus(0x8f);
    assert.equal(await card.frontEnd.getStatus(), 0x8f);
    await card.frontEnd.setVringErr(0, NO_FD);
    await card.frontEnd.setVringCall(0, NO_FD);
  });
});
