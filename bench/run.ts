/** `npm run bench -- NAME [options]`: runs a benchmark of this folder. */
import { USAGE, vm2vm } from './vm2vm.ts';

const BENCHMARKS: Record<string, { usage: string; run: (argv: readonly string[]) => Promise<void> }> = {
  vm2vm: { usage: USAGE, run: vm2vm },
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
