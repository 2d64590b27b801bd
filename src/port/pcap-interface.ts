/**
 * net_pcap on an interface of Linux, `iface=eth1`: in DPDK a capture by libpcap, here by the packet sockets that libpcap uses, too. It is
 * net_af_packet under another name.
 */
import { ConfigError } from '../errors.ts';
import { parseVdev, type Vdev, type VdevOf } from './vdev.ts';

/** What is opened for a device: itself, or the port on the interface that a net_pcap names. Throws ConfigError. */
export function livePort(vdev: Vdev): Vdev {
  const iface = vdev.kind === 'net_pcap' ? interfaceOf(vdev) : undefined;
  if (iface === undefined) return vdev;
  return { ...parseVdev(`net_af_packet${vdev.number},iface=${iface}`), name: vdev.name };
}

function interfaceOf({ name, values }: VdevOf<'net_pcap'>): string | undefined {
  const { iface, rx_iface, rx_iface_in, tx_iface, rx_pcap, tx_pcap } = values;
  const ways = [...rx_iface, ...rx_iface_in, ...tx_iface];
  const named = new Set(iface === undefined ? ways : [iface, ...ways]);
  if (named.size === 0) return undefined;
  const fail = (code: 'CONFIG_CONFLICT' | 'CONFIG_NOT_YET', problem: string): never => {
    throw new ConfigError(code, '--vdev', problem, { value: name });
  };
  const [one] = named;
  if (rx_pcap.length + tx_pcap.length > 0)
    fail(
      'CONFIG_CONFLICT',
      `net_pcap has files, or an interface for both ways: iface=${one}, without rx_pcap and tx_pcap`,
    );
  const bothWays = iface !== undefined || (tx_iface.length > 0 && rx_iface.length + rx_iface_in.length > 0);
  if (named.size > 1 || !bothWays)
    fail('CONFIG_NOT_YET', `an interface for one way only is not in this version; give iface=${one} for both`);
  return one;
}
