/**
 * The CPUs that lcores run on: whether they may, whether they have them for themselves, and how fast these run.
 */
import { cpuList, listText } from './cpu-list.ts';
import { type Finding, failure, fine, warning } from './finding.ts';
import { credentialsOf } from './process.ts';
import { guarded, type Source } from './source.ts';

const CPU = '/sys/devices/system/cpu';
const CGROUP = '/sys/fs/cgroup';

/** The CPUs in one of the lists of /sys/devices/system/cpu. */
const cpusIn = (source: Source, file: string) => cpuList(source.text(`${CPU}/${file}`) ?? '');

/**
 * cpu.….
 * @param lcores the CPUs that lcores are pinned to; empty: they are not pinned, or nobody knows
 */
export function checkCpus(source: Source, lcores: readonly number[]): Finding[] {
  return [
    ...guarded('cpu.allowed', () => checkAllowed(source, lcores)),
    ...guarded('cpu.isolation', () => checkIsolation(source, lcores)),
    ...guarded('cpu.siblings', () => checkSiblings(source, lcores)),
    ...guarded('cpu.quota', () => checkQuota(source)),
    ...guarded('cpu.governor', () => checkGovernor(source, lcores)),
  ];
}

function checkAllowed(source: Source, lcores: readonly number[]): Finding[] {
  const online = cpusIn(source, 'online');
  const allowed = credentialsOf(source, 'self')?.cpus ?? online;
  const refused = lcores.filter((cpu) => !allowed.includes(cpu) || !online.includes(cpu));
  if (refused.length === 0) return [fine('cpu.allowed', `programs may run on CPUs ${listText(allowed)}`)];
  return [
    failure('cpu.allowed', `lcores are to run on CPU ${listText(refused)}, but may run on ${listText(allowed)} only`, {
      shows: 'the switch says NO_SUCH_CPU, and does not start',
      mend: [
        `choose others: -l ${listText(allowed.slice(0, 2))}`,
        `in a systemd unit: AllowedCPUs=${listText(lcores)}; in a container: --cpuset-cpus=${listText(lcores)}`,
      ],
    }),
  ];
}

function checkIsolation(source: Source, lcores: readonly number[]): Finding[] {
  const isolated = cpusIn(source, 'isolated');
  const tickless = cpusIn(source, 'nohz_full');
  const facts = `isolated CPUs: ${listText(isolated) || 'none'}; without timer ticks: ${listText(tickless) || 'none'}`;
  const shared = lcores.filter((cpu) => !isolated.includes(cpu));
  if (lcores.length === 0 || shared.length === 0) return [fine('cpu.isolation', facts)];
  const list = listText(lcores);
  return [
    warning('cpu.isolation', `lcores share CPU ${listText(shared)} with other programs (${facts})`, {
      shows:
        'now and then packets wait for milliseconds, and receive queues run full, while something else has the CPU',
      mend: [
        `on the kernel's command line: isolcpus=${list} nohz_full=${list} rcu_nocbs=${list}`,
        `or, until the next boot: systemctl set-property --runtime user.slice AllowedCPUs=${otherCpus(source, lcores)}, and the same for system.slice`,
      ],
    }),
  ];
}

const otherCpus = (source: Source, lcores: readonly number[]) =>
  listText(cpusIn(source, 'online').filter((cpu) => !lcores.includes(cpu)));

function checkSiblings(source: Source, lcores: readonly number[]): Finding[] {
  const findings: Finding[] = [];
  const seen = new Set<number>();
  for (const cpu of lcores) {
    if (seen.has(cpu)) continue;
    const siblings = cpuList(source.text(`${CPU}/cpu${cpu}/topology/thread_siblings_list`) ?? '');
    const together = siblings.filter((one) => lcores.includes(one));
    for (const one of together) seen.add(one);
    if (together.length < 2) continue;
    findings.push(
      warning('cpu.siblings', `the lcores on CPUs ${listText(together)} share one core`, {
        shows: 'two polling threads take from one another: each moves little more than half of the packets',
        mend: [`give each lcore a core of its own; CPUs that share one: cat ${CPU}/cpu*/topology/thread_siblings_list`],
      }),
    );
  }
  if (findings.length > 0 || lcores.length === 0) return findings;
  return [fine('cpu.siblings', 'each lcore has a core of its own')];
}

/** cpu.max of cgroups of version 2, from this process's own group up. */
function checkQuota(source: Source): Finding[] {
  const group = /^0::(.*)$/m.exec(source.text('/proc/self/cgroup') ?? '')?.[1];
  const parts = (group ?? '').split('/').filter((part) => part !== '' && part !== '..');
  for (let depth = parts.length; depth >= 0; depth--) {
    const file = [CGROUP, ...parts.slice(0, depth), 'cpu.max'].join('/');
    const [quota = 'max', period = '100000'] = source.text(file)?.trim().split(' ') ?? [];
    if (quota === 'max') continue;
    const cpus = (Number(quota) / Number(period)).toFixed(2);
    return [
      warning('cpu.quota', `processor time is limited to ${cpus} CPUs (${file})`, {
        shows: `under load the switch stands still for up to ${Number(period) / 1000} ms at a time: bursts of loss, high latency`,
        mend: [`echo max >${file}`, 'in a systemd unit: CPUQuota= (empty); in a container: no --cpus'],
      }),
    ];
  }
  return [fine('cpu.quota', 'processor time is not limited')];
}

function checkGovernor(source: Source, lcores: readonly number[]): Finding[] {
  const cpus = lcores.length > 0 ? lcores : cpusIn(source, 'online');
  const governors = cpus.flatMap((cpu) => {
    const governor = source.text(`${CPU}/cpu${cpu}/cpufreq/scaling_governor`)?.trim();
    return governor === undefined ? [] : [{ cpu, governor }];
  });
  if (governors.length === 0) return [fine('cpu.governor', 'the frequency of the CPUs is not governed from here')];
  const slow = governors.filter(({ governor }) => governor !== 'performance');
  if (slow.length === 0) return [fine('cpu.governor', 'the frequency governor is performance')];
  const names = [...new Set(slow.map(({ governor }) => governor))].join(', ');
  const list = listText(slow.map(({ cpu }) => cpu));
  return [
    warning('cpu.governor', `the frequency governor of CPU ${list} is ${names}`, {
      shows: 'after a quiet spell the first packets take longer, and rates vary from run to run',
      mend: [`cpupower -c ${list} frequency-set -g performance`],
    }),
  ];
}
