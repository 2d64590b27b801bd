/** Opens a net_af_xdp port, says `open`, and holds it until it is killed; or says what is wrong. Run by af-xdp.test.ts. */
import { openAfXdp } from '../../src/port/af-xdp.ts';
import { pool } from '../kit/ram.ts';
import { xdpVdev } from '../kit/xdp-device.ts';

try {
  await openAfXdp(xdpVdev(process.argv[2]), { pool, lcores: 1 });
  console.log('open');
  setInterval(() => {}, 1000);
} catch (error) {
  const { code, message } = error as Error & { code?: string };
  console.log(`${code}: ${message}`);
  process.exitCode = 1;
}
