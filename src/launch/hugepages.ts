/**
 * Huge pages of this machine, and whether a guest fits into them.
 * @see Documentation/admin-guide/mm/hugetlbpage.rst
 */
import { ConfigError } from '../errors.ts';
import { parseSize, sizeText } from './size.ts';

/** A place where hugetlbfs is mounted. */
export interface HugetlbMount {
  readonly path: string;
  readonly pageBytes: number;
  /** bytes in pages that nobody has */
  readonly freeBytes: number;
}

/** Whether guests are to be in huge pages: never, when they fit, always, or on the mount that is named. */
export type HugepagesWish = 'off' | 'auto' | 'on' | { readonly path: string };

/** Mounts of hugetlbfs in a text like /proc/mounts. @param defaultPage bytes of a page where the mount does not say */
export function hugetlbMounts(
  mounts: string,
  defaultPage: number,
  freePages: (pageBytes: number) => number,
): HugetlbMount[] {
  return mounts.split('\n').flatMap((line) => {
    const [, path = '', type, options = ''] = line.split(' ');
    if (type !== 'hugetlbfs') return [];
    const pageBytes = parseSize(/(?:^|,)pagesize=([^,]+)/.exec(options)?.[1] ?? '', 1) ?? defaultPage;
    // the kernel writes blanks and the like in octal
    const plain = path.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
    return [{ path: plain, pageBytes, freeBytes: freePages(pageBytes) * pageBytes }];
  });
}

const describe = ({ path, pageBytes, freeBytes }: HugetlbMount) =>
  `${path} has ${sizeText(freeBytes)} free in pages of ${sizeText(pageBytes)}`;

/**
 * The mount for guest memory in pieces of `sizes` bytes; undefined for none.
 * Throws ConfigError where huge pages must be used and there are none, or not enough.
 */
export function chooseHugepages(
  wish: HugepagesWish,
  mounts: readonly HugetlbMount[],
  sizes: readonly number[],
): HugetlbMount | undefined {
  if (wish === 'off') return undefined;
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const fits = ({ pageBytes, freeBytes }: HugetlbMount) =>
    freeBytes >= total && sizes.every((size) => size % pageBytes === 0);
  const named = typeof wish === 'object' ? wish.path : undefined;
  const candidates = named === undefined ? mounts : mounts.filter(({ path }) => isUnder(named, path));
  const best = candidates.filter(fits).toSorted((a, b) => b.pageBytes - a.pageBytes)[0];
  if (best !== undefined) return named === undefined ? best : { ...best, path: named };
  if (wish === 'auto') return undefined;
  const there =
    candidates.length > 0
      ? candidates.map(describe).join('; ')
      : named === undefined
        ? 'hugetlbfs is mounted nowhere (mount -t hugetlbfs hugetlbfs /dev/hugepages)'
        : `${named} is not on hugetlbfs`;
  const problem =
    `the guest needs ${sizeText(total)}, in whole pages, but ${there}; ` +
    'sysctl vm.nr_hugepages=N makes pages, --hugepages off does without';
  throw new ConfigError('CONFIG_CONFLICT', '--hugepages', problem);
}

const isUnder = (path: string, folder: string) => path === folder || path.startsWith(`${folder}/`);
