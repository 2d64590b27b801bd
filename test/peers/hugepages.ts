/** Takes 2 MB hugepages for the time of a test or benchmark and puts the old number back. */
import { readFileSync, writeFileSync } from 'node:fs';
import { freeHugepages } from './dpdk.ts';
import { undoAtEnd } from './process.ts';

const COUNT_FILE = '/proc/sys/vm/nr_hugepages';

/** Hugepages that are there until `release`; or not, and `why`. */
export interface Hugepages {
  obtained: boolean;
  why: string;
  /** Puts the system's number back. Happens by itself when the program ends. May be called twice. */
  release(): void;
}

/**
 * Sees to it that `megabytes` of free 2 MB pages exist, as far as the machine and our rights allow.
 * The variable NO_HUGEPAGES, when set, has all peers use ordinary pages.
 */
export function reserveHugepages(megabytes: number): Hugepages {
  const wanted = Math.ceil(megabytes / 2);
  const none = (why: string): Hugepages => ({ obtained: false, why, release: () => {} });
  if (process.env.NO_HUGEPAGES) return none('NO_HUGEPAGES is set');
  if (freeHugepages() >= wanted) return { obtained: true, why: '', release: () => {} };
  let before: string;
  try {
    before = readCount();
    // more than once: pages of a program that has just ended may still be counted as taken
    for (let attempt = 0; attempt < 3 && freeHugepages() < wanted; attempt++) {
      writeFileSync(COUNT_FILE, String(Number(readCount()) + wanted - freeHugepages()));
    }
  } catch (error) {
    return none(`no hugepages: ${(error as Error).message}`);
  }
  const putBack = () => writeFileSync(COUNT_FILE, before);
  const free = freeHugepages();
  if (free < wanted) {
    putBack();
    return none(`the kernel found ${free} of ${wanted} hugepages`);
  }
  let held = true;
  const release = () => {
    if (held) putBack();
    held = false;
    forget();
  };
  const forget = undoAtEnd(release);
  return { obtained: true, why: '', release };
}

function readCount(): string {
  return readFileSync(COUNT_FILE, 'utf8').trim();
}

/** How a peer's memory is described in results. */
export function describeMemory(pages: Hugepages): string {
  return pages.obtained ? '2 MB hugepages' : `ordinary pages (${pages.why})`;
}
