/** `npm run bench -- NAME [options]`: runs a benchmark of this folder. */
import { USAGE as LATENCY_USAGE, latency } from './latency.ts';
import { USAGE as PATHS_USAGE, paths } from './paths.ts';
import { USAGE as RETRY_USAGE, retry } from './retry.ts';
import { USAGE as RFC2544_USAGE, rfc2544 } from './rfc2544.ts';
import { USAGE as TCP_USAGE, tcp } from './tcp.ts';
import { USAGE as UPLINK_USAGE, uplink } from './uplink.ts';
import { USAGE as UPLINK_TCP_USAGE, uplinkTcp } from './uplink-tcp.ts';
import { USAGE as VM2VM_USAGE, vm2vm } from './vm2vm.ts';

const BENCHMARKS: Record<string, { usage: string; run: (argv: readonly string[]) => Promise<void> }> = {
  vm2vm: { usage: VM2VM_USAGE, run: vm2vm },
  paths: { usage: PATHS_USAGE, run: paths },
  latency: { usage: LATENCY_USAGE, run: latency },
  rfc2544: { usage: RFC2544_USAGE, run: rfc2544 },
  retry: { usage: RETRY_USAGE, run: retry },
  tcp: { usage: TCP_USAGE, run: tcp },
  uplink: { usage: UPLINK_USAGE, run: uplink },
  'uplink-tcp': { usage: UPLINK_TCP_USAGE, run: uplinkTcp },
};

const [name, ...argv] = process.argv.slice(2);
const benchmark = BENCHMARKS[name ?? ''];
if (benchmark === undefined || argv.includes('--help')) {
  console.log('npm run bench -- NAME [options]\n');
  for (const { usage } of Object.values(BENCHMARKS)) console.log(usage);
  process.exitCode = benchmark === undefined ? 2 : 0;
} else {
  try {
    await benchmark.run(argv);
  } catch (error) {
    console.error((error as Error).message);
    process.exitCode = 1;
  }
}
