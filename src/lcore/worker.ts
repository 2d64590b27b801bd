/**
 * The lcore's thread: polls while there is work, sleeps when there is none, and carries out commands in between.
 */
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { LCORE_SLOTS } from '../stats/counters.ts';
import { pinThread } from '../sys/affinity.ts';
import { Caller, Epoll } from '../sys/eventfd.ts';
import { isTransmit } from '../virtio-net/net-vring.ts';
import { Lcore, type LcoreEvents } from './lcore.ts';
import { type Answer, CONTROL_CALLING, type Command, type LcoreSetup, type News } from './mailbox.ts';
import { PollPace } from './poll-pace.ts';
import { type BasicReport, CONTROL_POSTED, type Letter } from './posted-thread.ts';

/** Queues looked at in vain between two looks at the clock: two or three microseconds. */
const QUEUES_PER_LOOK = 128;
/** Rounds with work after which what ports hold back is sent: about 100 µs. */
const BUSY_ROUNDS_PER_DRAIN = 32;
/** Looks at the clock while busy: a burst takes a few microseconds. */
const BUSY_ROUNDS_PER_LOOK = 4096;

const setup = workerData as LcoreSetup;
const mailbox = parentPort as MessagePort;
const control = new Int32Array(setup.control);
const counters = new Float64Array(setup.counters);
const epoll = new Epoll();
const report = (message: BasicReport<Answer> | News) => mailbox.postMessage(message);

const events: LcoreEvents = {
  onRegistered: (port, first, last) => report({ type: 'registered', port, first, last }),
  onDuplicate: (port, first, last) => report({ type: 'duplicate', port, first, last }),
  onFault: (port, vring, fault) => report({ type: 'fault', port, vring, fault }),
  onMiss: (port, vring, iova, write) => report({ type: 'miss', port, vring, iova, write }),
};
const caller = new Caller(control, CONTROL_CALLING);
const lcore = new Lcore(setup.config, counters, caller, setup.bounce, events, setup.shared);

const pace = new PollPace(setup.poll, counters, performance.now());

let stopping = false;
let seen = 0;
/** empty rounds between two looks at the clock */
let roundsPerLook = QUEUES_PER_LOOK;
/** kick eventfds in the epoll set, by port and vring */
const kicks = new Map<string, number>();

function watchKick(port: number, vring: number, fd: number | undefined): void {
  const key = `${port}/${vring}`;
  const before = kicks.get(key);
  if (before !== undefined) epoll.remove(before);
  kicks.delete(key);
  if (fd === undefined || fd < 0) return;
  epoll.add(fd);
  kicks.set(key, fd);
}

function carryOut(command: Command): Answer {
  switch (command.type) {
    case 'addPort':
      lcore.addPort(command.port, command.counters, command.vlan);
      return undefined;
    case 'addDevice': {
      const { eventFds } = lcore.addDevice(command.port, command.counters, command.recipe);
      for (const fd of eventFds) epoll.add(fd);
      return undefined;
    }
    case 'removePort':
      for (const fd of lcore.device(command.port)?.eventFds ?? []) epoll.remove(fd);
      lcore.removePort(command.port);
      return undefined;
    case 'setMemory':
      lcore.setMemory(command.port, command.memory);
      return undefined;
    case 'startVring':
      lcore.startVring(command.port, command.vring, command.config, command.counters, command.state);
      if (isTransmit(command.vring)) watchKick(command.port, command.vring, command.config.ring.kickFd);
      return undefined;
    case 'stopVring':
      watchKick(command.port, command.vring, undefined);
      return lcore.stopVring(command.port, command.vring);
    case 'enableVring':
      lcore.enableVring(command.port, command.vring, command.enabled);
      return undefined;
    case 'setCall':
      lcore.setCall(command.port, command.vring, command.fd);
      return undefined;
    case 'inject':
      lcore.inject(command.port, command.frame);
      return undefined;
    case 'learn':
      lcore.learn(command.port, command.addresses);
      return undefined;
    case 'setMtu':
      lcore.setMtu(command.port, command.mtu);
      return undefined;
    case 'known':
      return lcore.known(command.port);
    case 'stop':
      stopping = true;
      return undefined;
  }
}

/** Carries out what has been posted. A command that fails is answered with the reason. */
function readMail(): void {
  seen = Atomics.load(control, CONTROL_POSTED);
  for (let mail = receiveMessageOnPort(mailbox); mail !== undefined; mail = receiveMessageOnPort(mailbox)) {
    const { epoch, command } = mail.message as Letter<Command>;
    counters[LCORE_SLOTS.commands]++;
    try {
      report({ type: 'done', epoch, value: carryOut(command) });
    } catch (error) {
      report({ type: 'done', epoch, error: error instanceof Error ? error.message : String(error) });
    }
  }
  roundsPerLook = Math.ceil(QUEUES_PER_LOOK / Math.max(1, lcore.queues));
}

let lastTick = -1;
function tick(nowMs: number): void {
  const now = Math.floor(nowMs / 1000);
  if (now === lastTick) return;
  lastTick = now;
  lcore.tick(now);
}

/** Sleeps until a guest kicks, the main thread posts or the time is up. */
function sleep(): void {
  const ms = lcore.prepareSleep();
  if (ms > 0 && Atomics.load(control, CONTROL_POSTED) === seen) {
    counters[LCORE_SLOTS.sleeps]++;
    epoll.wait(ms);
    pace.slept(performance.now());
  }
  lcore.wake();
}

function run(): void {
  let worked = false;
  let empty = 0;
  let rounds = 0;
  while (!stopping) {
    if (Atomics.load(control, CONTROL_POSTED) !== seen) readMail();
    if (lcore.poll() > 0) {
      worked = true;
      empty = 0;
      if (++rounds % BUSY_ROUNDS_PER_DRAIN === 0) lcore.drain();
      if (rounds % BUSY_ROUNDS_PER_LOOK === 0) {
        const now = performance.now();
        tick(now);
        pace.worked(now);
      }
      continue;
    }
    lcore.drain();
    if (++empty < roundsPerLook) continue;
    empty = 0;
    const now = performance.now();
    tick(now);
    if (worked) pace.worked(now);
    else if (pace.lookedInVain(now)) sleep();
    worked = false;
  }
}

if (setup.cpus.length > 0) pinThread(setup.cpus);
epoll.add(setup.wakeFd);
report({ type: 'ready' });
run();
epoll.close();
lcore.close();
mailbox.close();
