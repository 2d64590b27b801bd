/** Network namespaces with interfaces in them, for tests of uplinks; all of them go with the test. Needs root and iproute2. */
import { execFileSync } from 'node:child_process';
import { undoAtEnd } from './process.ts';

function run(command: string, args: readonly string[]): string {
  try {
    return execFileSync(command, args, { encoding: 'utf8', stdio: 'pipe', timeout: 20_000 });
  } catch (error) {
    const said = String((error as { stderr?: unknown }).stderr ?? '').trim();
    throw new Error(`${command} ${args.join(' ')}: ${said || (error as Error).message}`);
  }
}

/** `ip` with these arguments. */
export const ip = (...args: readonly string[]): string => run('ip', args);

let made = 0;
/** Names that no other test process has, short enough for an interface. */
const freshName = () => `v${process.pid}n${made++}`;

/** Says by an error why namespaces cannot be had here. */
export function probeNetns(): void {
  if (process.getuid?.() !== 0) throw new Error('network namespaces take root');
  const lab = new NetLab();
  try {
    lab.veth();
  } finally {
    lab.remove();
  }
}

/** Says why there can be no link of a type here, such as `macvlan`, or undefined. Throws where nothing may be left out (CI=true). */
export function lackingLink(type: string): string | undefined {
  const name = freshName();
  try {
    ip('link', 'add', name, 'type', type, ...(type === 'vxlan' ? ['id', '1', 'dstport', '4789'] : []));
  } catch (error) {
    // macvlan and the like are known, and want to know on what
    if (/link (is )?required|argument/i.test((error as Error).message)) return undefined;
    const why = `no ${type} links here: ${(error as Error).message}`;
    if (process.env.CI === 'true') throw new Error(why);
    return why;
  }
  ip('link', 'del', name);
  return undefined;
}

/** Two ends of a virtual cable. */
export interface Cable {
  /** the interface in this namespace */
  readonly near: string;
  /** the interface in `netns` */
  readonly far: string;
  readonly netns: string;
}

/** Namespaces and cables of one test. */
export class NetLab {
  readonly #namespaces: string[] = [];
  readonly #links: string[] = [];
  readonly #forget: () => void;

  constructor() {
    this.#forget = undoAtEnd(() => this.remove());
  }

  /** A namespace in which nothing speaks unasked. @returns its name */
  namespace(): string {
    const name = freshName();
    ip('netns', 'add', name);
    this.#namespaces.push(name);
    this.run(name, 'sysctl', '-qw', 'net.ipv6.conf.all.disable_ipv6=1', 'net.ipv6.conf.default.disable_ipv6=1');
    ip('-n', name, 'link', 'set', 'lo', 'up');
    return name;
  }

  /** A cable from this namespace to a new one, or to one there is, both ends up. @param mtu of both */
  veth({ netns = this.namespace(), mtu = 1500 } = {}): Cable {
    const near = freshName();
    const far = freshName();
    ip(
      'link',
      'add',
      near,
      'mtu',
      String(mtu),
      'type',
      'veth',
      'peer',
      'name',
      far,
      'mtu',
      String(mtu),
      'netns',
      netns,
    );
    this.#links.push(near);
    this.silence(near);
    ip('link', 'set', near, 'up');
    ip('-n', netns, 'link', 'set', far, 'up');
    return { near, far, netns };
  }

  /** Keeps the kernel from speaking IPv6, and so unasked, by an interface of this namespace. */
  silence(name: string): void {
    run('sysctl', ['-qw', `net.ipv6.conf.${name}.disable_ipv6=1`]);
  }

  /** A name for an interface that somebody else makes; it is removed with the others. */
  interfaceName(): string {
    const name = freshName();
    this.#links.push(name);
    return name;
  }

  /** Runs a command in a namespace to its end. @returns what it says */
  run(netns: string, command: string, ...args: readonly string[]): string {
    return run('ip', ['netns', 'exec', netns, command, ...args]);
  }

  /** Any number of times. */
  remove(): void {
    this.#forget();
    for (const link of this.#links.splice(0)) attempt(() => ip('link', 'del', link));
    for (const name of this.#namespaces.splice(0)) attempt(() => ip('netns', 'del', name));
  }
}

/** What a test has removed itself is gone already. */
function attempt(remove: () => void): void {
  try {
    remove();
  } catch (error) {
    if (!/Cannot find|No such file/.test((error as Error).message)) throw error;
  }
}
