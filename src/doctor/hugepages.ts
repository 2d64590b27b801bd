/**
 * Hugepages: how many there are of each size and on each NUMA node, and where they can be had. The switch needs none; guests may use them.
 */
import { hugetlbMounts } from '../launch/hugepages.ts';
import { parseSize, sizeText } from '../launch/size.ts';
import { type Finding, fine, warning } from './finding.ts';
import { sizeInWords } from './size.ts';
import type { Source } from './source.ts';

const POOLS = '/sys/kernel/mm/hugepages';
const NODES = '/sys/devices/system/node';

/** The hugepages of one size. */
export interface HugepagePool {
  /** bytes of a page */
  readonly size: number;
  readonly total: number;
  readonly free: number;
  /** of the free ones, those that are promised to somebody */
  readonly reserved: number;
  /** how many may be made beyond the pool when they are wanted */
  readonly overcommit: number;
  readonly nodes: readonly { readonly node: number; readonly total: number; readonly free: number }[];
}

/** A mounted file system. */
export interface Mount {
  readonly path: string;
  readonly type: string;
  readonly options: string;
}

/** A mounted hugetlbfs. */
export interface HugepageMount {
  readonly path: string;
  /** bytes of a page */
  readonly size: number;
}

const numberIn = (source: Source, path: string) => Number(source.text(path)?.trim() ?? 0) || 0;

/** All sizes that the kernel has, ascending. */
export function hugepagePools(source: Source): HugepagePool[] {
  const nodes = source.list(NODES).filter((name) => /^node\d+$/.test(name));
  const pools = source.list(POOLS).flatMap((name) => {
    const kilobytes = /^hugepages-(\d+)kB$/.exec(name)?.[1];
    if (kilobytes === undefined) return [];
    const count = (file: string) => numberIn(source, `${POOLS}/${name}/${file}`);
    return {
      size: Number(kilobytes) * 1024,
      total: count('nr_hugepages'),
      free: count('free_hugepages'),
      reserved: count('resv_hugepages'),
      overcommit: count('nr_overcommit_hugepages'),
      nodes: nodes.map((node) => ({
        node: Number(node.slice('node'.length)),
        total: numberIn(source, `${NODES}/${node}/hugepages/${name}/nr_hugepages`),
        free: numberIn(source, `${NODES}/${node}/hugepages/${name}/free_hugepages`),
      })),
    };
  });
  return pools.sort((a, b) => a.size - b.size);
}

/** Where hugetlbfs is mounted, for the processes that see the same mounts as `pid`. */
export function hugepageMounts(source: Source, pid: number | 'self' = 'self'): HugepageMount[] {
  const mounts = hugetlbMounts(source.text(`/proc/${pid}/mounts`) ?? '', normalSize(source), () => 0);
  return mounts.map(({ path, pageBytes }) => ({ path, size: pageBytes }));
}

/** All mounts that a process sees, in the order they were made. */
export function mountsOf(source: Source, pid: number | 'self'): Mount[] {
  return (source.text(`/proc/${pid}/mounts`) ?? '').split('\n').flatMap((line) => {
    const [, path, type, options] = line.split(' ');
    return options === undefined ? [] : { path: unescapeMount(path), type, options };
  });
}

/** The size that is meant where none is named, bytes. */
function normalSize(source: Source): number {
  return Number(/^Hugepagesize:\s*(\d+) kB$/m.exec(source.text('/proc/meminfo') ?? '')?.[1] ?? 2048) * 1024;
}

/** The kernel writes blanks in paths as octal numbers. */
const unescapeMount = (path: string) =>
  path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

/** The file that sets how many pages of a size there are, on a node or altogether. */
export function poolFile({ size }: Pick<HugepagePool, 'size'>, node?: number): string {
  const base = node === undefined ? POOLS : `${NODES}/node${node}/hugepages`;
  return `${base}/hugepages-${size / 1024}kB/nr_hugepages`;
}

/** hugepages.pool, hugepages.nodes, hugepages.mount, hugepages.boot. */
export function checkHugepages(source: Source): Finding[] {
  const pools = hugepagePools(source);
  const used = pools.filter(({ total }) => total > 0);
  if (used.length === 0) {
    const none = 'there are no hugepages; none are needed: memory-backend-memfd takes ordinary pages';
    return [fine('hugepages.pool', none), ...checkBoot(source, pools)];
  }
  return [
    ...used.map(checkPool),
    ...used.flatMap(checkNodes),
    ...checkMounts(used, hugepageMounts(source)),
    ...checkBoot(source, pools),
  ];
}

function checkPool(pool: HugepagePool): Finding {
  const { size, total, free, reserved, overcommit } = pool;
  const left = Math.max(0, free - reserved);
  const promised = reserved === 0 ? '' : `, ${reserved} of them promised`;
  const facts = `hugepages of ${sizeInWords(size)}: ${total}, ${free} free${promised}`;
  if (left > 0 || overcommit > 0) return fine('hugepages.pool', facts);
  return warning('hugepages.pool', `${facts}: none is left`, {
    shows:
      'the next QEMU with hugepages says "unable to map backing store for guest RAM: Cannot allocate memory", and ends',
    mend: [`echo ${total * 2} >${poolFile(pool)}`],
  });
}

function checkNodes(pool: HugepagePool): Finding[] {
  const { size, nodes } = pool;
  if (nodes.length < 2) return [];
  const facts = nodes.map(({ node, total, free }) => `node ${node}: ${total}, ${free} free`).join('; ');
  const bare = nodes.filter(({ total }) => total === 0);
  const what = `hugepages of ${sizeInWords(size)} by NUMA node: ${facts}`;
  if (bare.length === 0) return [fine('hugepages.nodes', what)];
  const most = Math.max(...nodes.map(({ total }) => total));
  return [
    warning('hugepages.nodes', what, {
      shows: `a guest on node ${bare[0].node} has its memory on another one, and every packet goes there`,
      mend: bare.map(({ node }) => `echo ${most} >${poolFile(pool, node)}`),
    }),
  ];
}

function checkMounts(pools: readonly HugepagePool[], mounts: readonly HugepageMount[]): Finding[] {
  return pools.map((pool) => {
    const text = sizeInWords(pool.size);
    const there = mounts.filter(({ size }) => size === pool.size);
    if (there.length > 0)
      return fine('hugepages.mount', `hugetlbfs of ${text} at ${there.map(({ path }) => path).join(', ')}`);
    const folder = `/dev/hugepages-${sizeText(pool.size)}`;
    const option = `-object memory-backend-memfd,id=mem,size=…,share=on,hugetlb=on,hugetlbsize=${sizeText(pool.size)}`;
    return warning('hugepages.mount', `there are hugepages of ${text}, but no hugetlbfs of that size is mounted`, {
      shows: 'QEMU has no folder to name in -mem-path',
      mend: [
        `mkdir -p ${folder} && mount -t hugetlbfs -o pagesize=${sizeText(pool.size)} hugetlbfs ${folder}`,
        `or, without a mount: ${option}`,
      ],
    });
  });
}

/** The kernel's command line says `hugepagesz=1G hugepages=4`: each number is of the size before it. */
function checkBoot(source: Source, pools: readonly HugepagePool[]): Finding[] {
  const words = (source.text('/proc/cmdline') ?? '').trim().split(/\s+/);
  let size = normalSize(source);
  const findings: Finding[] = [];
  for (const word of words) {
    size = parseSize(/^hugepagesz=(\w+)$/.exec(word)?.[1] ?? '', 1) ?? size;
    const asked = Number(/^hugepages=(\d+)$/.exec(word)?.[1] ?? 0);
    if (asked === 0) continue;
    const pool = pools.find((one) => one.size === size);
    const got = pool?.total ?? 0;
    const what = `the kernel was asked for ${asked} hugepages of ${sizeInWords(size)} when it booted, and has ${got}`;
    if (got >= asked) findings.push(fine('hugepages.boot', what));
    else
      findings.push(
        warning('hugepages.boot', what, {
          shows: 'guests that were counted on do not start for want of memory',
          mend:
            pool === undefined
              ? [`this machine has no pages of ${sizeInWords(size)}: ask for another size (hugepagesz=2M)`]
              : [`echo ${asked} >${poolFile(pool)}`, 'or give the machine more memory, or ask for fewer'],
        }),
      );
  }
  return findings;
}
