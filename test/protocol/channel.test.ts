/** The back end's own requests: their bytes on both sides, and front ends that do not read, do not answer, or answer nonsense. */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { check, libc } from '../../src/sys/libc.ts';
import { isUnixStream, unixPair } from '../../src/sys/unix-socket.ts';
import { featureMask } from '../../src/uapi/virtio.ts';
import { BackEndChannel } from '../../src/vhost-user/back-end-channel.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { type BackEndRequests, FrontEndChannelServer } from '../../src/vhost-user/front-end-channel.ts';
import type { FakeDevice } from './fake-device.ts';
import { altered, littleEndian64, REPLY_ACK } from './golden.ts';
import { FdBox, openFds, RawPeer, TestServer, until } from './harness.ts';
import { prepare, settle } from './prepare.ts';

const BACKEND_REQ = 1 << 5;
const SEND_FD = 1 << 10;
const NEED_REPLY = 9;
const SET_BACKEND_REQ_FD = '15000000 01000000 00000000';
const plain = (hex: string) => hex.replaceAll(/\s/g, '');
const answerTo = (request: string, result: bigint) =>
  `${plain(request).slice(0, 8)}0500000008000000${littleEndian64(result)}`;
const fcntl = libc.func('fcntl', 'int', ['int', 'int', 'int']);
const F_SETFL = 4;

interface Golden {
  readonly name: string;
  /** without the flag that asks for an answer */
  readonly request: string;
  readonly fd?: boolean;
  readonly send: (channel: BackEndChannel, fd: number) => unknown;
  /** what the front end hears */
  readonly heard: readonly unknown[];
  /** it does not ask for an answer even with REPLY_ACK */
  readonly unasked?: boolean;
}

const GOLDEN: readonly Golden[] = [
  {
    name: 'BACKEND_IOTLB_MSG',
    request: `01000000 01000000 20000000
      0010000001000000 0000000000000000 0000000000000000 02 01 000000000000`,
    send: (channel) => channel.iotlbMiss(0x1_0000_1000, 2),
    heard: ['miss', 0x1_0000_1000n, 2],
  },
  {
    name: 'BACKEND_CONFIG_CHANGE_MSG',
    request: '02000000 01000000 00000000',
    send: (channel) => channel.configChanged(),
    heard: ['config'],
  },
  {
    name: 'BACKEND_VRING_HOST_NOTIFIER_MSG',
    request: '03000000 01000000 18000000 0200000000000000 0010000000000000 0020000000000000',
    fd: true,
    send: (channel, fd) => channel.hostNotifier(2, { fd, size: 0x1000, fileOff: 0x2000 }),
    heard: ['notifier', 2, { size: 0x1000, fileOff: 0x2000 }],
    unasked: true,
  },
  {
    name: 'BACKEND_VRING_HOST_NOTIFIER_MSG without a descriptor',
    request: '03000000 01000000 18000000 0201000000000000 0000000000000000 0000000000000000',
    send: (channel) => channel.hostNotifier(2, undefined),
    heard: ['notifier', 2, undefined],
    unasked: true,
  },
  {
    name: 'BACKEND_VRING_CALL',
    request: '04000000 01000000 08000000 03000000 00000000',
    send: (channel) => channel.vringCall(3),
    heard: ['call', 3],
  },
  {
    name: 'BACKEND_VRING_ERR',
    request: '05000000 01000000 08000000 01000000 00000000',
    send: (channel) => channel.vringError(1),
    heard: ['error', 1],
  },
];

/** Handlers that note what they hear. */
function listener(heard: unknown[][]): BackEndRequests {
  return {
    onIotlbMiss: (iova, permissions) => void heard.push(['miss', iova, permissions]),
    onConfigChange: () => void heard.push(['config']),
    onVringCall: (vring) => void heard.push(['call', vring]),
    onVringError: (vring) => void heard.push(['error', vring]),
    onHostNotifier(vring, area) {
      if (area === undefined) heard.push(['notifier', vring, undefined]);
      else {
        const { fd, ...place } = area;
        closeSync(fd);
        heard.push(['notifier', vring, place]);
      }
    },
  };
}

for (const golden of GOLDEN) {
  for (const replyAck of [false, true]) {
    test(`back end: ${golden.name} has the bytes of the specification, ${replyAck ? 'with' : 'without'} REPLY_ACK`, async () => {
      const before = openFds();
      const [own, theirs] = unixPair();
      const peer = new RawPeer(theirs);
      const box = new FdBox();
      const channel = new BackEndChannel(own, {
        protocolFeatures: featureMask(10) | (replyAck ? featureMask(3) : 0n),
        onProblem: assert.fail,
        onClose: assert.ifError,
      });
      const received: number[] = [];
      await golden.send(channel, golden.fd ? box.memfd(0x3000) : -1);
      const flags = replyAck && !golden.unasked ? NEED_REPLY : 1;
      const expected = altered(golden.request, { flags });
      assert.equal(await peer.read(expected.length / 2, received), expected);
      assert.equal(received.length, golden.fd ? 1 : 0);
      channel.close();
      await golden.send(channel, -1); // does nothing
      for (const fd of received) closeSync(fd);
      for (const each of [peer, box]) each.close();
      assert.equal(openFds(), before);
    });

    test(`front end: ${golden.name} is understood, ${replyAck ? 'and answered' : 'without an answer'}`, async () => {
      const before = openFds();
      const [own, theirs] = unixPair();
      const peer = new RawPeer(theirs);
      const box = new FdBox();
      const heard: unknown[][] = [];
      const server = new FrontEndChannelServer(own, listener(heard));
      const request = altered(golden.request, { flags: replyAck ? NEED_REPLY : 1 });
      peer.send(request, golden.fd ? [box.memfd(0x3000)] : []);
      await until(() => heard.length > 0, 'the request is heard');
      assert.deepEqual(heard, [golden.heard]);
      if (replyAck) assert.equal(await peer.read(20), answerTo(request, 0n));
      await sleep(1);
      assert.ok(peer.silent());
      server.close();
      for (const each of [peer, box]) each.close();
      assert.equal(openFds(), before);
    });

    test(`front end: ${golden.name} that is not served is ${replyAck ? 'refused' : 'the end of the channel'}`, async () => {
      const [own, theirs] = unixPair();
      const peer = new RawPeer(theirs);
      const problems: string[] = [];
      const server = new FrontEndChannelServer(own, {
        onRefusal: ({ message }) => problems.push(message),
        onChannelClose: (error) => problems.push(`closed: ${error?.message}`),
      });
      const box = new FdBox();
      const request = altered(golden.request, { flags: replyAck ? NEED_REPLY : 1 });
      peer.send(request, golden.fd ? [box.memfd()] : []);
      if (replyAck) assert.equal(await peer.read(20), answerTo(request, 1n));
      else await peer.untilClosed();
      assert.match(problems[0], /^(closed: )?BACKEND_[A-Z_]+: not served$/);
      server.close();
      for (const each of [peer, box]) each.close();
    });
  }
}

for (const [what, request, says] of [
  ['of no known number', '63000000 09000000 00000000', /back-end request 99: not served/],
  ['of another device', '06000000 09000000 10000000 00000000000000000000000000000000', /SHARED_OBJECT_ADD: not served/],
  ['too short', '04000000 09000000 04000000 00000000', /BACKEND_VRING_CALL: payload is 4 bytes, must be 8/],
  ['of an IOTLB type', altered(GOLDEN[0].request, { flags: 9 }).replace(/0201(0{12})$/, '0202$1'), /type 2, must be 1/],
  ['without its descriptor', altered(GOLDEN[2].request, { flags: 9 }), /0 file descriptors, must be 1/],
] as const) {
  test(`front end: a back end's request ${what} is refused`, async () => {
    const [own, theirs] = unixPair();
    const peer = new RawPeer(theirs);
    const problems: string[] = [];
    const heard: unknown[][] = [];
    const onRefusal = ({ message }: Error) => void problems.push(message);
    const server = new FrontEndChannelServer(own, { ...listener(heard), onRefusal });
    peer.send(request);
    assert.equal(await peer.read(20), answerTo(request, 1n));
    assert.match(problems[0], says);
    assert.deepEqual(heard, []);
    server.close();
    peer.close();
  });
}

/** A back end with a channel to a peer that knows no protocol. `onPassed` gets this process's copy of the back end's end. */
async function withChannel(
  bits: number,
  use: (peers: { main: RawPeer; channel: RawPeer; device: FakeDevice; server: TestServer }) => Promise<void>,
  onPassed?: (fd: number) => void,
): Promise<void> {
  const before = openFds();
  const server = new TestServer();
  const { peer: main, device } = await server.connect();
  await prepare(main, device, { needs: bits });
  const [passed, own] = unixPair();
  const channel = new RawPeer(own);
  main.send(SET_BACKEND_REQ_FD, [passed]);
  await settle(main);
  onPassed?.(passed);
  closeSync(passed);
  assert.deepEqual(device.calls, [['setChannel', 'channel']]);
  await use({ main, channel, device, server });
  channel.close();
  await server.close();
  assert.equal(openFds(), before);
}

const CALL_0 = `040000000900000008000000${littleEndian64(0n)}`;
const CALL_1 = `040000000900000008000000${littleEndian64(1n)}`;
const CONFIG_CHANGE = '020000000900000000000000';

test('calls while an answer is due: one more is sent when it has come, however many there were', () =>
  withChannel(BACKEND_REQ | REPLY_ACK, async ({ channel, device }) => {
    for (let i = 0; i < 1000; i++) device.channel?.vringCall(0);
    device.channel?.vringCall(1);
    assert.equal(await channel.read(40), CALL_0 + CALL_1);
    await sleep(2);
    assert.ok(channel.silent());
    channel.send(answerTo(CALL_0, 0n));
    assert.equal(await channel.read(20), CALL_0);
    channel.send(answerTo(CALL_1, 0n));
    channel.send(answerTo(CALL_0, 0n));
    await sleep(2);
    assert.ok(channel.silent());
    device.channel?.vringCall(1);
    assert.equal(await channel.read(20), CALL_1);
  }));

test('a front end that answers no miss: the channel closes at a bound, the device hears of it, the connection lives', () =>
  withChannel(BACKEND_REQ | REPLY_ACK, async ({ main, device, server }) => {
    for (let i = 0; i <= 1024; i++) device.channel?.iotlbMiss(i * 4096, 1);
    await until(() => device.calls.length > 1, 'the device is told');
    assert.deepEqual(device.calls.at(-1), ['setChannel', undefined]);
    assert.match(
      server.problems()[0],
      /channel closed: BACKEND_IOTLB_MSG: 1024 requests of the back end are unanswered/,
    );
    await settle(main);
  }));

test('a front end that reads nothing, on a socket that it makes blocking: the channel closes, nothing waits', () =>
  withChannel(
    BACKEND_REQ,
    async ({ main, device, server }) => {
      const start = performance.now();
      for (let i = 0; i < 100_000 && device.calls.length === 1; i++) {
        device.channel?.vringCall(0);
        if (i % 1000 === 0) await sleep(0);
      }
      await until(() => device.calls.length > 1, 'the device is told');
      assert.deepEqual(device.calls.at(-1), ['setChannel', undefined]);
      assert.match(server.problems()[0], /channel closed: the peer left 655\d\d bytes unread/);
      assert.ok(performance.now() - start < 4000);
      await settle(main);
    },
    (passed) => check(fcntl(passed, F_SETFL, 0), 'fcntl'),
  ));

for (const [what, answer, says] of [
  ['nobody asked for', answerTo(CONFIG_CHANGE, 0n) + answerTo(CONFIG_CHANGE, 0n), /an answer nobody asked for/],
  ['to another request', answerTo(CALL_0, 0n), /BACKEND_VRING_CALL: the answer is to another request/],
  ['without the reply flag', altered(answerTo(CONFIG_CHANGE, 0n), { flags: 1 }), /lacks the reply flag/],
  ['of another size', altered(answerTo(CONFIG_CHANGE, 0n), { size: 4 }), /CHANGE_MSG: payload is 4 bytes, must be 8/],
  ['of another version', altered(answerTo(CONFIG_CHANGE, 0n), { flags: 4 }), /CHANGE_MSG: version 0 in the header/],
] as const) {
  test(`an answer on the channel ${what}: costs the channel, not the connection`, () =>
    withChannel(BACKEND_REQ | REPLY_ACK, async ({ main, channel, device, server }) => {
      device.channel?.configChanged();
      channel.send(answer);
      await until(() => device.calls.length > 1, 'the device is told');
      assert.deepEqual(device.calls.at(-1), ['setChannel', undefined]);
      assert.match(server.problems().join('\n'), says);
      assert.equal(await channel.read(12), CONFIG_CHANGE);
      await channel.untilClosed();
      await settle(main);
    }));
}

test('a refusal on the channel: is logged, and the channel goes on', () =>
  withChannel(BACKEND_REQ | REPLY_ACK, async ({ channel, device, server }) => {
    device.channel?.configChanged();
    channel.send(answerTo(CONFIG_CHANGE, 1n));
    await until(() => server.problems().length > 0, 'the refusal is logged');
    assert.deepEqual(server.problems(), ['warn device 0: BACKEND_CONFIG_CHANGE_MSG: the front end refuses (answer 1)']);
    device.channel?.configChanged();
    assert.equal(await channel.read(24), CONFIG_CHANGE.repeat(2));
  }));

test('a front end that closes the channel while the device is at work: the device hears of it afterwards', () =>
  withChannel(BACKEND_REQ, async ({ main, channel, device }) => {
    device.delayMs = 30;
    main.send('08000000 01000000 08000000 03000000 00010000');
    await until(() => device.busy, 'the device is at work');
    check(libc.func('shutdown', 'int', ['int', 'int'])(channel.fd, 2), 'shutdown');
    await until(() => device.calls.length === 3, 'the device is told');
    assert.deepEqual(device.calls.slice(1), [
      ['setVringNum', 3, 256],
      ['setChannel', undefined],
    ]);
  }));

test('a thousand channels, each in place of the one before: the old ones are closed, nothing leaks', () =>
  withChannel(BACKEND_REQ, async ({ main, channel, device }) => {
    const before = openFds();
    let last = channel;
    for (let i = 0; i < 1000; i++) {
      const [passed, own] = unixPair();
      main.send(SET_BACKEND_REQ_FD, [passed]);
      closeSync(passed);
      await settle(main);
      await last.untilClosed();
      last.close();
      last = new RawPeer(own);
    }
    assert.equal(openFds(), before);
    assert.equal(
      device.calls.filter(([, to]) => to === undefined).length,
      0,
      'the device never hears that it has none',
    );
    device.channel?.vringCall(0);
    assert.equal(await last.read(20), altered(CALL_0, { flags: 1 }));
    last.close();
  }));

test('a descriptor for the front end without BACKEND_SEND_FD: an error', async () => {
  const [own, theirs] = unixPair();
  const channel = new BackEndChannel(own, { protocolFeatures: 0n, onProblem: assert.fail, onClose: assert.ifError });
  await assert.rejects(channel.hostNotifier(0, { fd: 0, size: 4096, fileOff: 0 }), {
    code: 'PROTOCOL_NOT_SUPPORTED',
    message: 'BACKEND_VRING_HOST_NOTIFIER_MSG: protocol feature bit 10 was not negotiated',
  });
  channel.close();
  closeSync(theirs);
});

test('a translation missing: the front end gives it, and only then answers', async () => {
  const before = openFds();
  const server = new TestServer();
  const frontEnd = await FrontEnd.connect(server.path);
  await until(() => server.devices.length === 1, 'the device is created');
  const [device] = server.devices;
  await frontEnd.setProtocolFeatures(BigInt(BACKEND_REQ | REPLY_ACK | SEND_FD));
  await frontEnd.setFeatures(featureMask(30, 32, 33));
  await frontEnd.openChannel({
    onIotlbMiss: (iova, permissions) =>
      frontEnd.updateIotlb({ iova: Number(iova), size: 4096, userAddr: 0x5000, permissions }),
  });
  device.channel?.iotlbMiss(0x3000, 3);
  device.channel?.iotlbMiss(0x3000, 3);
  const update = ['updateIotlb', { iova: 0x3000, size: 4096, userAddr: 0x5000, permissions: 3 }];
  await until(() => device.calls.length === 4, 'both misses are served, one after the other');
  assert.deepEqual(device.calls.slice(2), [update, update]);
  assert.deepEqual(server.problems(), []);

  // a second channel in place of the first, then the connection's end
  const heard: unknown[][] = [];
  const closed: (Error | undefined)[] = [];
  await frontEnd.openChannel({ ...listener(heard), onChannelClose: (error) => closed.push(error) });
  device.channel?.vringCall(1);
  await until(() => heard.length === 1, 'the call is heard');
  frontEnd.close();
  assert.deepEqual(closed, [undefined]);
  await server.close();
  assert.ok(
    server.problems().every((line) => line.startsWith('info')),
    server.problems().join('\n'),
  );
  assert.equal(openFds(), before);
});

test('isUnixStream: a Unix stream socket, and nothing else', () => {
  const box = new FdBox();
  assert.ok(isUnixStream(box.pair()[0]));
  for (const fd of [box.eventfd(), box.memfd(), box.devNull(), box.pipe()[0]]) assert.equal(isUnixStream(fd), false);
  const socket = libc.func('socket', 'int', ['int', 'int', 'int']);
  for (const [domain, type] of [
    [1, 2], // AF_UNIX, SOCK_DGRAM
    [2, 1], // AF_INET, SOCK_STREAM
  ]) {
    const fd = check(socket(domain, type, 0), 'socket');
    assert.equal(isUnixStream(fd), false);
    closeSync(fd);
  }
  box.close();
});
