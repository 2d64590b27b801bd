/** Ports of net_af_xdp under test, with all that belongs to them. */
import { type AfXdpDevice, openAfXdp } from '../../src/port/af-xdp.ts';
import { AfXdpPort, type AfXdpSpec } from '../../src/port/af-xdp-port.ts';
import { parseVdev, type VdevOf } from '../../src/port/vdev.ts';
import { PortBench } from './port-bench.ts';
import { pool } from './ram.ts';

export const xdpVdev = (keys: string) => parseVdev(`net_af_xdp0,${keys}`) as VdevOf<'net_af_xdp'>;

/** Opens a port, one bench for each of `lcores`, uses them and closes all. */
export async function withXdp(
  keys: string,
  use: (device: AfXdpDevice, benches: PortBench<AfXdpSpec>[]) => Promise<void>,
  { lcores = 1, sizes = undefined as { receive: number; transmit: number } | undefined } = {},
): Promise<void> {
  const device = await openAfXdp(xdpVdev(keys), { pool, lcores }, sizes);
  const benches: PortBench<AfXdpSpec>[] = [];
  try {
    for (let lcore = 0; lcore < lcores; lcore++) benches.push(new PortBench(AfXdpPort, device.spec(lcore)));
    await use(device, benches);
  } finally {
    for (const bench of benches) bench.close();
    await device.close();
  }
}
