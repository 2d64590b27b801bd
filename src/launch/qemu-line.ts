/**
 * QEMU's command line as a list of options in order: which words belong together, and which option they are.
 * What the values mean is not looked at here.
 * @see QEMU qemu-options.hx
 */
import { impliedKey, type OptionValue, parseValue } from './option-value.ts';

/** Options without a value, of QEMU 2 to 10. Every other option takes the next word as its value. */
export const QEMU_FLAGS: ReadonlySet<string> = new Set([
  ...['h', 'help', 'version', 'audio-help', 'S', 's', 'preconfig', 'daemonize', 'nodefaults', 'nodefconfig'],
  ...['no-user-config', 'only-migratable', 'async-teardown', 'enable-sync-profile', 'enable-fips', 'singlestep'],
  ...['one-insn-per-tb', 'snapshot', 'usb', 'semihosting', 'old-param', 'mem-prealloc', 'localtime', 'tdf'],
  ...['enable-kvm', 'enable-hax', 'no-kvm', 'no-kvm-irqchip', 'no-kvm-pit', 'no-kvm-pit-reinjection', 'xen-attach'],
  ...['xen-create', 'xen-domid-restrict', 'no-acpi', 'no-hpet', 'no-fd-bootchk', 'win2k-hack', 'rtc-td-hack'],
  ...['no-reboot', 'no-shutdown', 'nographic', 'curses', 'sdl', 'portrait', 'full-screen', 'no-frame', 'alt-grab'],
  ...['ctrl-grab', 'no-quit', 'show-cursor'],
]);

/** One option of a command line. */
export interface LineOption {
  /** Without dashes, `M` as `machine`; empty for a disk image, which stands for itself. */
  readonly name: string;
  /** As typed: the option and its value. */
  readonly words: readonly string[];
  /** Undefined for a flag, and for an option at the end that lacks its value. */
  readonly value: string | undefined;
}

/** Takes QEMU's arguments apart; the words of all options, in order, are the arguments again. */
export function parseLine(args: readonly string[]): LineOption[] {
  const line: LineOption[] = [];
  for (let next = 0; next < args.length; ) {
    const word = args[next++];
    if (!word.startsWith('-')) {
      line.push({ name: '', words: [word], value: word });
      continue;
    }
    const typed = word.replace(/^--?/, '');
    const name = typed === 'M' ? 'machine' : typed;
    const value = QEMU_FLAGS.has(name) ? undefined : args[next];
    if (value !== undefined) next++;
    line.push({ name, words: value === undefined ? [word] : [word, value], value });
  }
  return line;
}

/** The value of an option by keys. */
export function optionValue(option: LineOption): OptionValue {
  return parseValue(option.value ?? '', impliedKey(option.name));
}

/** What the options `name` come to together where QEMU merges them, the later one counting: of `-machine` and `-m`. */
export function mergedValue(line: readonly LineOption[], name: string, key: string): string | undefined {
  return line
    .filter((option) => option.name === name)
    .map((option) => optionValue(option).get(key))
    .findLast((text) => text !== undefined);
}

/** The command line only asks QEMU something, and starts no machine: `-version`, `-device help`, `-machine none`. */
export function startsNoMachine(line: readonly LineOption[]): boolean {
  const asks = ({ name, value }: LineOption) =>
    ['h', 'help', 'version', 'audio-help'].includes(name) ||
    (name !== '' && value !== undefined && /(^|,)(help|\?)$/.test(value) && !VERBATIM.has(name));
  return mergedValue(line, 'machine', 'type') === 'none' || line.some(asks);
}

/** Options whose value is a text or a file, in which `help` means nothing. */
const VERBATIM: ReadonlySet<string> = new Set([
  ...['append', 'kernel', 'initrd', 'dtb', 'bios', 'name', 'hda', 'hdb', 'hdc', 'hdd', 'fda', 'fdb', 'cdrom'],
  ...['drive', 'sd', 'pflash', 'pidfile', 'D', 'L', 'readconfig', 'mem-path', 'incoming', 'loadvm', 'chroot', 'runas'],
]);
