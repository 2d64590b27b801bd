/**
 * From the QEMU command line that people have to the one that puts the guest on the switch. Pure: what must be known of the machine is
 * asked through the wish.
 */
import { Draft, type Part } from './draft.ts';
import { type MemoryWish, shareMemory } from './memory.ts';
import { type NetworkWish, switchNetwork } from './network.ts';
import { startsNoMachine } from './qemu-line.ts';

export interface Wish {
  readonly network: NetworkWish;
  readonly memory: MemoryWish;
}

/** A command line and how it came about. */
export interface Rewritten {
  /** every option in order, the ones left out among them */
  readonly parts: readonly Part[];
  /** the arguments for QEMU */
  readonly args: readonly string[];
  /** what the user may want to know, a sentence each */
  readonly remarks: readonly string[];
}

/**
 * Rewrites QEMU's arguments, its program left off. A line without a virtio network card, or one that starts no machine, stays as it is.
 * Throws ConfigError for a line that cannot work with the switch.
 */
export function rewriteQemuLine(args: readonly string[], wish: Wish): Rewritten {
  const draft = new Draft(args);
  if (!startsNoMachine(draft.line)) {
    if (switchNetwork(draft, wish.network) > 0) shareMemory(draft, wish.memory);
    else draft.remarks.push('nothing is changed: there is no virtio network card; -device virtio-net-pci makes one');
    if (draft.line.some(({ name }) => name === 'readconfig'))
      draft.remarks.push('what -readconfig reads is not looked at');
  }
  const parts = draft.parts();
  return {
    parts,
    args: parts.flatMap(({ words, change }) => (change === 'left out' ? [] : words)),
    remarks: draft.remarks,
  };
}
