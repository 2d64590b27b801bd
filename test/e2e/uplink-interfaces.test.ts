/** Uplinks on what else Linux calls an interface: a port of a bridge, a bridge, macvlan, VXLAN. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RawHost } from '../kit/raw-host.ts';
import { type Cable, ip, lackingLink, NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { waitUntil } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['netns'])).leftOut;

const HOST = macOf(0x42);
const GUEST = macOf(1);
const ALL = 'ff:ff:ff:ff:ff:ff';
const WAIT_MS = 10_000;
/** The longest frame that all of them carry, with a tag. */
const LONGEST = 1400;

interface World {
  /** the uplink's interface, as in --vdev */
  readonly iface: string;
  /** what it is told to. Default: net_af_packet0 */
  readonly vdev?: string;
  /** where the host is */
  readonly host: Pick<Cable, 'netns' | 'far'>;
  /** the guest's address, if it cannot be any */
  readonly mac?: string;
}

/** With the type of link that the kernel must have. */
const WORLDS: readonly { name: string; type: string; make: (lab: NetLab) => World }[] = [
  {
    name: 'a cable to a port of a bridge, which has another host',
    type: 'bridge',
    make: (lab) => {
      const { near, far, netns } = lab.veth();
      ip('-n', netns, 'link', 'add', 'br0', 'up', 'type', 'bridge');
      ip('-n', netns, 'link', 'set', far, 'master', 'br0');
      const home = lab.namespace();
      ip(
        '-n',
        netns,
        'link',
        'add',
        'port',
        'up',
        'master',
        'br0',
        'type',
        'veth',
        'peer',
        'name',
        'h0',
        'netns',
        home,
      );
      ip('-n', home, 'link', 'set', 'h0', 'up');
      return { iface: near, host: { netns: home, far: 'h0' } };
    },
  },
  {
    name: 'a bridge',
    type: 'bridge',
    make: (lab) => {
      const { near, far, netns } = lab.veth();
      const iface = lab.interfaceName();
      ip('link', 'add', iface, 'type', 'bridge');
      lab.silence(iface);
      ip('link', 'set', near, 'master', iface);
      ip('link', 'set', iface, 'up');
      return { iface, host: { netns, far } };
    },
  },
  ...['passthru', 'bridge'].map((mode) => ({
    name: mode === 'passthru' ? 'macvlan that lets all through' : 'macvlan, and a guest with its address',
    type: 'macvlan',
    make: (lab: NetLab) => {
      const { near, far, netns } = lab.veth();
      const iface = lab.interfaceName();
      ip('link', 'add', iface, 'link', near, 'type', 'macvlan', 'mode', mode);
      lab.silence(iface);
      ip('link', 'set', iface, 'up');
      const [, mac] = /link\/ether (\S+)/.exec(ip('link', 'show', iface)) ?? [];
      return { iface, host: { netns, far }, ...(mode === 'bridge' ? { mac } : {}) };
    },
  })),
  {
    name: 'a cable, by net_pcap',
    type: 'veth',
    make: (lab) => {
      const { near, far, netns } = lab.veth();
      return { iface: near, vdev: 'net_pcap0', host: { netns, far } };
    },
  },
  {
    name: 'VXLAN',
    type: 'vxlan',
    make: (lab) => {
      const { near, far, netns } = lab.veth();
      const home = lab.namespace();
      ip('link', 'set', near, 'netns', home);
      // of the addresses for documentation (RFC 5737): nobody's
      const ends = [
        { netns: home, dev: near, local: '192.0.2.1', remote: '192.0.2.2' },
        { netns, dev: far, local: '192.0.2.2', remote: '192.0.2.1' },
      ];
      for (const { netns, dev, local, remote } of ends) {
        ip('-n', netns, 'addr', 'add', `${local}/30`, 'dev', dev);
        ip('-n', netns, 'link', 'set', dev, 'up');
        const tunnel = ['id', '42', 'dstport', '4789', 'local', local, 'remote', remote, 'dev', dev];
        ip('-n', netns, 'link', 'add', 'vx0', 'up', 'type', 'vxlan', ...tunnel);
      }
      const iface = `${home}:vx0`;
      return { iface, host: { netns, far: 'vx0' } };
    },
  },
];

const tagged = (bytes: Uint8Array) =>
  Buffer.concat([bytes.subarray(0, 12), Buffer.from('81006064', 'hex'), bytes.subarray(12)]);

const framesFrom = (from: string, to: string, n = 100) =>
  Array.from({ length: n }, (_, i) => frame(to, from, i, 60 + ((i * 97) % (LONGEST - 60))));

for (const { name, type, make } of WORLDS) {
  const why = leftOut?.why ?? lackingLink(type);
  const skip = why === undefined ? false : `left out: ${why}`;
  test(`an uplink on ${name}: frames pass both ways, with tags and without`, { skip, timeout: 60_000 }, async () => {
    const lab = new NetLab();
    const { iface, vdev = 'net_af_packet0', host: place, mac = GUEST } = make(lab);
    const running = await SwitchProcess.start(['--vdev', `${vdev},iface=${iface}`, '-p', '0x1', '--vlan', 'off']);
    const host = new RawHost(place);
    try {
      const guest = await connectGuest({ path: running.socket, mac });
      const send = (bytes: Uint8Array) => {
        assert.ok(guest.send(bytes));
        guest.flush();
      };
      const through = async () => {
        send(frame(HOST, mac, 0xfffff));
        return (await host.waitFrame(100)) !== undefined;
      };
      await waitUntil('a frame through the uplink', through, WAIT_MS);
      while ((await host.waitFrame(100)) !== undefined);
      for (const bytes of [...framesFrom(mac, HOST), ...framesFrom(mac, HOST, 10).map(tagged)]) {
        send(bytes);
        assert.deepEqual(Buffer.from((await host.waitFrame(WAIT_MS)) ?? []), Buffer.from(bytes));
      }
      const toGuest = [...framesFrom(HOST, mac), ...framesFrom(HOST, ALL, 10)];
      for (const bytes of [...toGuest, ...framesFrom(HOST, mac, 10).map(tagged)]) {
        host.send(bytes);
        assert.deepEqual(Buffer.from((await guest.waitFrame(WAIT_MS)) ?? []), Buffer.from(bytes));
      }
      assert.equal(guest.receive(), undefined, 'nothing else arrives');
      await guest.close();
      assert.equal(await running.stop(), 'ended with status 0', running.output);
    } finally {
      host.close();
      await running.kill();
      lab.remove();
    }
  });
}
