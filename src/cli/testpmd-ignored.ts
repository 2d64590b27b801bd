/**
 * Options of DPDK's testpmd that are accepted without a meaning here.
 */
import { FLAG, type Option, TEXT } from './options.ts';

const without = (long: string, value?: string): Option => ({
  long,
  ...(value === undefined ? { type: FLAG } : { value, type: TEXT }),
  help: '',
});

/** Of hardware, of mbufs and of memory: what they ask for is so anyway, or cannot be otherwise. */
export const TESTPMD_IGNORED: readonly Option[] = [
  ...['numa', 'no-numa', 'disable-crc-strip', 'enable-scatter', 'disable-rss', 'rss-ip', 'rss-udp'].map((n) =>
    without(n),
  ),
  ...['disable-link-check', 'no-lsc-interrupt', 'no-rmv-interrupt', 'hot-plug'].map((n) => without(n)),
  ...['enable-hw-vlan', 'enable-hw-vlan-filter', 'enable-hw-vlan-strip', 'enable-hw-vlan-extend'].map((n) =>
    without(n),
  ),
  ...['enable-hw-qinq-strip', 'enable-lro', 'enable-rx-timestamp', 'flow-isolate-all'].map((n) => without(n)),
  ...['rss-level-inner', 'rss-level-outer'].map((n) => without(n)),
  ...['eth-link-speed', 'max-lro-pkt-size', 'rxq-share', 'print-event', 'mask-event'].map((n) => without(n, 'VALUE')),
  ...['vxlan-gpe-port', 'geneve-parsed-port', 'bitrate-stats', 'latencystats'].map((n) => without(n, 'VALUE')),
  ...['mlockall', 'no-mlockall', 'no-iova-contig', 'enable-rx-cksum', 'enable-drop-en'].map((n) => without(n)),
  ...['port-numa-config', 'ring-numa-config', 'socket-num', 'mbcache', 'mp-alloc'].map((n) => without(n, 'VALUE')),
  ...['rxpt', 'rxht', 'rxwt', 'rxfreet', 'txpt', 'txht', 'txwt', 'txfreet', 'txrst'].map((n) => without(n, 'COUNT')),
  ...['tx-offloads', 'rx-offloads', 'rx-mq-mode'].map((n) => without(n, 'MASK')),
];
