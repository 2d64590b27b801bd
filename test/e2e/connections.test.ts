/** Many connections, and front ends with bad manners: nobody else waits, and nothing is left behind. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, readdirSync } from 'node:fs';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { AGAIN, connectUnix, receive, send } from '../../src/sys/unix-socket.ts';
import { REQUEST, VHOST_USER_VERSION } from '../../src/uapi/vhost-user.ts';
import { encodeMessage, U64 } from '../../src/vhost-user/message.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, Conversation, connectGuest, frame, macOf } from './traffic.ts';

const MIB = 2 ** 20;
/** The first ten of a message's twenty bytes. */
const HALF = encodeMessage(REQUEST.SET_FEATURES, VHOST_USER_VERSION, U64.encode(1n)).subarray(0, 10);
const GET_FEATURES = encodeMessage(REQUEST.GET_FEATURES, VHOST_USER_VERSION, new Uint8Array(0));

async function withSwitch(args: readonly string[], use: (running: SwitchProcess) => Promise<void>): Promise<void> {
  const running = await SwitchProcess.start(args);
  try {
    await use(running);
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  } finally {
    await running.kill();
  }
}

/** Connects, again when the backlog is full. */
async function connect(path: string): Promise<number> {
  for (let tries = 0; ; tries++) {
    try {
      return connectUnix(path);
    } catch (error) {
      if ((error as { code?: string }).code !== 'EAGAIN' || tries > 1000) throw error;
      await sleep(1);
    }
  }
}

/** Waits until the other side has closed a connection, reading nothing else. */
async function untilClosed(fd: number): Promise<void> {
  const giveUpAt = performance.now() + 10_000;
  for (let n: number = AGAIN; n !== 0; ) {
    assert.ok(performance.now() < giveUpAt, 'the switch keeps the connection');
    await sleep(1);
    try {
      n = receive(fd, new Uint8Array(65536), []);
    } catch {
      return; // reset
    }
  }
}

describe('connections', { timeout: 120_000 }, () => {
  test('a thousand front ends that say half a message disturb nobody', () =>
    withSwitch(['--max-devices', '1024'], async (running) => {
      const others = await Conversation.start(running.socket);
      const fds: number[] = [];
      for (let n = 0; n < 1000; n++) {
        const fd = await connect(running.socket);
        fds.push(fd);
        send(fd, HALF);
      }
      await running.until('a thousand and two devices', () => running.openFds > 1002);
      await others.exchangesMore(50);
      const late = await connectGuest({ path: running.socket, mac: macOf(1) });
      await others.exchangesMore();
      for (const fd of fds) closeSync(fd);
      await running.until('the devices to be gone', () => running.openFds < 200);
      await others.exchangesMore();
      await late.close();
      const { longestMs } = await others.stop();
      assert.ok(longestMs < 2000, `two guests waited ${longestMs} ms for each other`);
    }));

  test('a front end that reads no answers is disconnected, and nobody waits for it', () =>
    withSwitch([], async (running) => {
      const others = await Conversation.start(running.socket);
      const mark = running.mark;
      const fd = await connect(running.socket);
      const many = Buffer.concat(Array.from({ length: 1000 }, () => GET_FEATURES));
      const giveUpAt = performance.now() + 10_000;
      try {
        while (performance.now() < giveUpAt) {
          send(fd, many); // in part, when the switch is behind: then it is no message any more, but it has had enough
          await sleep(1);
        }
        assert.fail('the switch answers for ever');
      } catch (error) {
        assert.match(String((error as { code?: string }).code), /EPIPE|ECONNRESET/);
      }
      closeSync(fd);
      await running.line(/error: .*(left \d+ bytes unread|connection closed)/, mark);
      await running.line(/^DATA: \(2\) Device has been removed$/, mark);
      await others.exchangesMore();
      await others.stop();
    }));

  test('front ends beyond --max-devices are refused with a line, and let in when there is room again', () =>
    withSwitch(['--max-devices', '3'], async (running) => {
      const others = await Conversation.start(running.socket);
      const third = await connectGuest({ path: running.socket, mac: macOf(3) });
      const mark = running.mark;
      for (let n = 0; n < 5; n++) {
        const refused = await connect(running.socket);
        await untilClosed(refused);
        closeSync(refused);
      }
      await running.line(/^VHOST_CONFIG: warn: socket .*: connection \d+: refused, there is no device for it$/, mark);
      await others.exchangesMore();
      await third.close();
      await running.line(/^DATA: \(2\) Device has been removed$/, mark);
      const heir = await connectGuest({ path: running.socket, mac: macOf(4) });
      heir.send(frame(macOf(5), heir.mac));
      heir.flush();
      await running.line(/^DATA: \(2\) MAC_ADDRESS 52:54:00:00:00:04 and VLAN_TAG 1002 registered$/, mark);
      await heir.close();
      await others.stop();
    }));

  test('a switch that has no file descriptors left refuses guests with a line, keeps those it has, and recovers', () =>
    withSwitch([], async (running) => {
      const others = await Conversation.start(running.socket);
      const limit = (n: number) => execFileSync('prlimit', ['--pid', `${running.pid}`, `--nofile=${n}:`]);
      const before = running.openFds;
      /** The limit, which is one for fd numbers, that leaves `spare` of them. */
      const limitFor = (spare: number) => {
        const used = new Set(readdirSync(`/proc/${running.pid}/fd`).map(Number));
        let n = 0;
        for (let free = 0; used.has(n) || free < spare; n++) if (!used.has(n)) free++;
        return n;
      };
      for (const spare of [1, 3, 5]) {
        const mark = running.mark;
        limit(limitFor(spare));
        const failing = connectGuest({ path: running.socket, mac: macOf(1) });
        await assert.rejects(failing);
        await running.line(/EMFILE|too many open files/, mark);
        await sleep(1200); // what looks at devices once a second must not stumble either
        await others.exchangesMore();
        limit(4096);
        const late = await connectGuest({ path: running.socket, mac: macOf(1), deadlineMs: 5000 });
        await late.close();
        await running.until('its descriptors to be closed', () => running.openFds === before);
      }
      await others.stop();
    }));

  test('two hundred guests that come and go leave no descriptor and no mapping behind', () =>
    // one pair each: what is collected late of 128 would look like a leak
    withSwitch(['--queues', '1'], async (running) => {
      const inUse = async () => {
        await running.until('all devices to be gone', () => running.mappedFiles === 0);
        return { fds: running.openFds, mappings: running.mappings };
      };
      const cycle = async (n: number) => {
        const size = (4 + 2 * (n % 4)) * MIB;
        const memory = [0, 1, 2].map((i) => ({ guestAddr: i * 2 ** 30, size }));
        const [a, b] = await Promise.all(
          [1, 2].map((i) => connectGuest({ path: running.socket, mac: macOf(i), memory, memSlots: n % 2 === 0 })),
        );
        await assertDelivered(a, b, [frame(b.mac, a.mac, n, 1000)]);
        if (n % 3 === 0) await a.restart({ reset: true });
        if (n % 5 === 0) await b.frontEnd.sendRaw(HALF);
        if (n % 7 === 0) await a.frontEnd.resetOwner();
        await Promise.all([a.close(), b.close()]);
      };
      for (let n = 0; n < 20; n++) await cycle(n);
      const before = await inUse();
      for (let n = 20; n < 120; n++) await cycle(n); // two guests each
      const later = await inUse();
      assert.equal(later.fds, before.fds, 'file descriptors');
      // the heap of the program itself grows a little; one for each guest would be 200
      assert.ok(later.mappings < before.mappings + 50, `mappings: ${before.mappings}, then ${later.mappings}`);
    }));
});
