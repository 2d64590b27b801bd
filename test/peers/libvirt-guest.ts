/** The test guest as a libvirt domain. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { GuestAgent, type ShellResult } from './guest-agent.ts';
import { guestImage } from './guest-image.ts';
import type { Libvirt } from './libvirt.ts';
import { lastLines, waitUntil } from './process.ts';

/** Time for a boot; two at a time take 10 s on a quiet machine. */
const BOOT_TIMEOUT_MS = 90_000;

/** What the domain is made of. */
export interface LibvirtGuestOptions {
  /** Of the domain, and the guest's host name: letters, digits, hyphens. */
  readonly name: string;
  /** Its `<interface>` element. */
  readonly networkInterface: string;
  /** Address and prefix length of eth0, such as 10.0.0.1/24. */
  readonly ip: string;
  /** Default: QEMU itself. */
  readonly emulator?: string;
  /** Environment of the emulator besides libvirt's own. */
  readonly env?: Readonly<Record<string, string>>;
}

/** One guest: `start`, then `sh`, then `stop`. */
export class LibvirtGuest {
  readonly name: string;
  readonly #options: LibvirtGuestOptions;
  readonly #libvirt: Libvirt;
  readonly #agent: GuestAgent;

  constructor(libvirt: Libvirt, options: LibvirtGuestOptions) {
    this.name = options.name;
    this.#options = options;
    this.#libvirt = libvirt;
    this.#agent = new GuestAgent(this.#path('agent'));
  }

  /**
   * The domain as its user would write it. Without MSI, by which QEMU 7.2 crashes under TCG; with memory and processor that boot fast.
   */
  async xml(): Promise<string> {
    const { kernel, initrd } = await guestImage();
    const { name, ip, networkInterface, emulator = '/usr/bin/qemu-system-x86_64', env = {} } = this.#options;
    const variables = Object.entries(env).map(([key, value]) => `<qemu:env name='${key}' value='${value}'/>`);
    const console_ = 'console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check pci=nomsi';
    return `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>${name}</name>
  <memory unit='MiB'>192</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>${kernel}</kernel>
    <initrd>${initrd}</initrd>
    <cmdline>${console_} g_name=${name} g_ip=${ip}</cmdline>
  </os>
  <features>
    <acpi/>
  </features>
  <devices>
    <emulator>${emulator}</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path='${this.#path('log')}'/>
      <target port='0'/>
    </serial>
    <serial type='unix'>
      <source mode='bind' path='${this.#path('agent')}'/>
      <target port='1'/>
    </serial>
    ${networkInterface}
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>${variables.join('')}</qemu:commandline>
</domain>
`;
  }

  /** Defines the domain, from this XML, and starts it; the guest runs commands when this returns. */
  async start(xml: string): Promise<this> {
    writeFileSync(this.#path('xml'), xml);
    await this.virsh('define', '--validate', this.#path('xml'));
    await this.virsh('start', this.name);
    const details = () => `--- console of ${this.name}, last lines:\n${lastLines(this.log, 15)}`;
    const booted = () => /GUEST READY [^\r\n]*/.test(this.log);
    await waitUntil(`${this.name} to boot`, booted, BOOT_TIMEOUT_MS, { details, everyMs: 50 });
    return this;
  }

  /** The guest's console so far. */
  get log(): string {
    const file = this.#path('log');
    return existsSync(file) ? readFileSync(file, 'latin1') : '';
  }

  /** Runs a shell command in the guest. */
  sh(command: string, timeoutMs = 20_000): Promise<ShellResult> {
    return this.#agent.run(command, timeoutMs);
  }

  virsh(...args: readonly string[]): Promise<string> {
    return this.#libvirt.virsh(...args);
  }

  /** What libvirt says the domain does, such as `running`; it may take a word of several lines. */
  async state(): Promise<string> {
    return (await this.virsh('domstate', this.name)).trim();
  }

  /** Closes the connection to the guest; the domain ends with libvirtd. */
  close(): void {
    this.#agent.close();
  }

  #path(file: string): string {
    return this.#libvirt.path(`${this.name}.${file}`);
  }
}
