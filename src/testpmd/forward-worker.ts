/**
 * The entry of a forwarding thread: carries out the main thread's commands, and in between forwards.
 */
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { SwitchError } from '../errors.ts';
import { type BasicReport, CONTROL_POSTED, type Letter } from '../lcore/posted-thread.ts';
import { openWindow, type WindowHandle, type WindowViews } from '../mem/window.ts';
import type { DevicePort } from '../port/device-port.ts';
import { pinThread } from '../sys/affinity.ts';
import { drain, Epoll } from '../sys/eventfd.ts';
import { RingStage } from '../virtio-net/ring-stage.ts';
import { Forwarding } from './forwarding.ts';
import { CONTROL_SHOWN, type Command, type Dumped, type Failed, type ForwardSetup, type RunPlan } from './letters.ts';
import { PacketDump } from './packet-dump.ts';
import { makePort } from './port-kinds.ts';
import { Workshop } from './workshop.ts';

/** Empty turns between two looks at the clock, and how long they go on before the thread sleeps. */
const TURNS_PER_LOOK = 64;
const IDLE_BEFORE_SLEEP_MS = 0.2;
/** The longest sleep: time is looked at now and then. */
const MAX_SLEEP_MS = 1000;

const setup = workerData as ForwardSetup;
const mailbox = parentPort as MessagePort;
const control = new Int32Array(setup.control);
const report = (message: BasicReport<void> | Failed | Dumped) => mailbox.postMessage(message);
const epoll = new Epoll();
const ringStage = new RingStage();
const windows: WindowViews[] = [];
const addWindow = (window: WindowHandle): WindowViews => {
  windows[window.id] ??= openWindow(window);
  return windows[window.id];
};
const workshop = new Workshop(windows, addWindow(setup.window), ringStage.burst);

let shown = 0;
const waiting = () => (shown - Atomics.load(control, CONTROL_SHOWN)) | 0;
const show = (text: string) => {
  shown++;
  report({ type: 'dumped', text });
};

let seen = 0;
let ending = false;
let prepared: Forwarding | undefined;
/** what is forwarded now */
let running: Forwarding | undefined;

function prepare({ ports: plans, ...options }: RunPlan): Forwarding {
  const ports: DevicePort[] = [];
  try {
    for (const { kind, id, counters, spec } of plans)
      ports.push(makePort(kind, id, new Float64Array(counters), { ringStage, windows, addWindow }, spec));
    const forwarding = new Forwarding(ports, workshop, options);
    for (const fd of forwarding.eventFds) epoll.add(fd);
    return forwarding;
  } catch (error) {
    for (const port of ports) port.close();
    throw error;
  }
}

function stop(): void {
  running = undefined;
  for (const fd of prepared?.eventFds ?? []) epoll.remove(fd);
  prepared?.close();
  prepared = undefined;
}

function carryOut(command: Command): void {
  switch (command.type) {
    case 'prepare':
      prepared = prepare(command.plan);
      if (command.flush) prepared.flush();
      return;
    case 'first':
      prepared?.sendFirst(command.bursts);
      return;
    case 'go':
      running = prepared;
      return;
    case 'verbose':
      workshop.dump = command.level === 0 ? undefined : new PacketDump(command.level, waiting, show);
      return;
    case 'stop':
      stop();
      return;
    case 'end':
      stop();
      ending = true;
      return;
  }
}

/** What is no error of this package's says what kind it is. */
function reasonOf(error: unknown): string {
  if (error instanceof SwitchError) return error.message;
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

/** Carries out what has been posted. A command that fails is answered with the reason. */
function readMail(): void {
  seen = Atomics.load(control, CONTROL_POSTED);
  for (let mail = receiveMessageOnPort(mailbox); mail !== undefined; mail = receiveMessageOnPort(mailbox)) {
    const { epoch, command } = mail.message as Letter<Command>;
    try {
      carryOut(command);
      report({ type: 'done', epoch });
    } catch (error) {
      report({ type: 'done', epoch, error: reasonOf(error) });
    }
  }
}

/** Sleeps until there is something to receive, or a command. */
function sleep(): void {
  const ms = running === undefined ? -1 : running.prepareSleep();
  if (ms === 0 || Atomics.load(control, CONTROL_POSTED) !== seen) return;
  epoll.wait(ms < 0 ? MAX_SLEEP_MS : ms);
  drain(setup.wakeFd);
}

/** Forwards and carries out commands until the end. Throws what forwarding throws. */
function work(): void {
  let idleSince = 0;
  let empty = 0;
  while (!ending) {
    if (Atomics.load(control, CONTROL_POSTED) !== seen) {
      readMail();
      continue;
    }
    if (running === undefined) {
      sleep();
      continue;
    }
    if (running.turn() > 0) {
      empty = 0;
      continue;
    }
    if (setup.poll === 'busy' || ++empty % TURNS_PER_LOOK !== 0) continue;
    const now = performance.now();
    if (empty === TURNS_PER_LOOK) idleSince = now;
    if (now - idleSince < IDLE_BEFORE_SLEEP_MS) continue;
    sleep();
    empty = 0;
  }
}

/** The same: an error that nobody has foreseen ends what is forwarded, and not the thread. */
function run(): void {
  while (!ending) {
    try {
      work();
    } catch (error) {
      if (running === undefined) throw error;
      report({ type: 'failed', reason: reasonOf(error) });
      stop();
    }
  }
}

if (setup.cpus.length > 0) pinThread(setup.cpus);
epoll.add(setup.wakeFd);
report({ type: 'ready' });
run();
epoll.close();
mailbox.close();
