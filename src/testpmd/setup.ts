/**
 * What `set …`, `port config …` and `csum …` change, and what DPDK's testpmd says to it: which ports and cores forward, how long
 * frames may be, who makes checksums.
 */
import { MAX_BURST, type PortChoice, type Session } from './session.ts';

/** DPDK's least MTU of a port that does not say (RTE_ETHER_MIN_MTU). */
const MIN_MTU = 68;

export const CSUM_LAYERS = ['ip', 'udp', 'tcp', 'sctp', 'outer-ip', 'outer-udp'] as const;
type CsumLayer = (typeof CSUM_LAYERS)[number];
const CSUM_NAMES: Readonly<Record<CsumLayer, string>> = {
  ip: 'IP',
  udp: 'UDP',
  tcp: 'TCP',
  sctp: 'SCTP',
  'outer-ip': 'Outer-Ip',
  'outer-udp': 'Outer-Udp',
};

/** What `port config all` sets that is the same here whatever is asked for. */
export const FIXED = ['rxd', 'txd', 'max-pkt-len'] as const;

/** Says what stands against a change. @returns true if something does */
function refused(session: Session, problem: string | false | undefined): boolean {
  if (typeof problem !== 'string') return false;
  session.say(problem);
  return true;
}

const whileForwarding = (session: Session) => session.engine.forwarding && 'Please stop forwarding first';

function twice(noun: string, list: readonly number[]): string | undefined {
  const at = list.findIndex((n, i) => list.indexOf(n) < i);
  return at < 0 ? undefined : `duplicated ${noun} ${list[at]} at index ${list.indexOf(list[at])} and ${at}`;
}

export function setPorts(session: Session, ports: readonly number[]): void {
  const there = session.engine.ports().map(({ port }) => port);
  const missing = ports.find((port) => !there.includes(port));
  const invalid = missing === undefined ? twice('port', ports) : `Invalid port ${missing}`;
  if (refused(session, whileForwarding(session) || invalid)) return;
  const before = session.ports.length;
  session.configuredPorts = ports;
  session.config.ports = ports;
  if (before !== ports.length) {
    const changed = `changed to number of configured ports ${ports.length}`;
    session.say(`previous number of forwarding ports ${before} - ${changed}`);
  }
  warnOfOdd(session);
}

export function setPortCount(session: Session, count: number): void {
  const { length } = session.configuredPorts;
  const many = `nb fwd ports ${count} > ${length} (number of configured ports) - ignored`;
  if (refused(session, count > length && many)) return;
  session.config.ports = session.configuredPorts.slice(0, count);
  session.say(`Number of forwarding ports set to ${count}`);
  warnOfOdd(session);
}

function warnOfOdd(session: Session): void {
  if (session.topology !== 'paired' || session.ports.length % 2 === 0) return;
  const warning = 'Warning! port-topology=paired and odd forward ports number, the last port will pair with itself.';
  session.say(`\n${warning}\n`);
}

export function setCoreCount(session: Session, count: number): void {
  const { length } = session.config.coreOrder ?? session.lcores;
  const many = `nb fwd cores ${count} > ${length} (max. number of configured lcores) - ignored`;
  if (refused(session, whileForwarding(session) || (count > length && many))) return;
  session.config.cores = count;
  session.say(`Number of forwarding cores set to ${count}`);
}

export function setCores(session: Session, lcores: readonly number[]): void {
  const missing = lcores.find((lcore) => !session.lcores.includes(lcore));
  const invalid = missing === undefined ? twice('core', lcores) : `lcore ${missing} not enabled`;
  if (refused(session, whileForwarding(session) || invalid)) return;
  const { config } = session;
  config.coreOrder = lcores.map((lcore) => session.lcores.indexOf(lcore));
  if (config.cores !== lcores.length) {
    const changed = `changed to number of configured cores ${lcores.length}`;
    session.say(`previous number of forwarding cores ${config.cores} - ${changed}`);
  }
  config.cores = lcores.length;
}

/** All ports take what is for groups; they cannot do otherwise. */
export function setAllMulticast(session: Session, choice: PortChoice, on: boolean): void {
  for (const { port } of session.portsOf(choice))
    if (!on) session.say(`Error during disabling all-multicast mode for port ${port}: Operation not supported`);
}

export function setMtu(session: Session, port: number, mtu: number): void {
  for (const { maxMtu } of session.portsOf(port)) {
    const beyond = mtu < MIN_MTU ? `< device min MTU (${MIN_MTU})` : `> device max MTU (${maxMtu})`;
    // -EOPNOTSUPP
    const fixed = maxMtu === undefined && mtu >= MIN_MTU && 'Set MTU failed. diag=-95';
    const invalid = (mtu < MIN_MTU || mtu > (maxMtu ?? mtu)) && `MTU (${mtu}) ${beyond} for port_id ${port}`;
    if (!refused(session, fixed || invalid)) session.engine.setMtu(port, mtu);
  }
}

/** `port config all …` is for ports that are stopped. */
function allStopped(session: Session): boolean {
  const stopped = session.engine.ports().every(({ started }) => !started);
  if (!stopped) session.say('Please stop all ports first');
  return stopped;
}

export function setQueues(session: Session, way: 'rxq' | 'txq', count: number): void {
  if (!allStopped(session)) return;
  const short = session.engine.ports().find(({ maxQueues }) => maxQueues < count);
  if (short === undefined) session.config[way] = count;
  else {
    const limit = `max_${way.slice(0, 2)}_queues (${short.maxQueues}) of port ${short.port}`;
    session.say(`Fail: input ${way} (${count}) can't be greater than ${limit}`);
  }
}

export function setBurstOfAll(session: Session, burst: number): void {
  if (allStopped(session)) session.config.burst = Math.min(burst, MAX_BURST);
}

export function setFixed(session: Session, what: (typeof FIXED)[number]): void {
  if (allStopped(session)) session.say(`${what} stays as it is: ports have the rings and the frames that they have`);
}

export function setCsum(session: Session, layer: CsumLayer, place: 'hw' | 'sw', port: number): void {
  if (!isStopped(session, port)) return;
  if (place === 'hw') session.say(`${CSUM_NAMES[layer]} checksum offload is not supported by port ${port}`);
  showCsum(session, port);
}

export function showCsum(session: Session, port: number): void {
  if (!isStopped(session, port)) return;
  const lines = CSUM_LAYERS.map((layer) => `${CSUM_NAMES[layer]} checksum offload is sw`);
  session.say(['Parse tunnel is off', ...lines].join('\n'));
}

function isStopped(session: Session, port: number): boolean {
  const [info] = session.portsOf(port);
  if (info?.started === true) session.say(`Please stop port ${port} first`);
  return info?.started === false;
}
