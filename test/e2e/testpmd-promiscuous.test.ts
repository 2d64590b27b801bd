/** `set promisc` on interfaces of Linux, and on ports that take what they are given. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { probeXdp } from '../peers/af-xdp.ts';
import { ip, NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { closeEngines, engineOf } from './testpmd-engine.ts';

const [leftOut] = (await ensurePeers(['netns'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;
after(closeEngines);

const promiscuity = (name: string) => Number(/promiscuity (\d+)/.exec(ip('-d', 'link', 'show', name))?.[1]);

const SKIPS = { net_af_packet: skip, net_af_xdp: skip === false ? await probeXdp() : skip };

for (const [kind, why] of Object.entries(SKIPS))
  test(`${kind}: the interface is promiscuous, or not`, { skip: why }, async () => {
    const lab = new NetLab();
    after(() => lab.remove());
    const { near } = lab.veth({ mtu: 1500 });
    const engine = await engineOf([`${kind}0,iface=${near}`]);
    try {
      for (const on of [true, false, false, true, true]) {
        engine.setPromiscuous(0, on);
        assert.equal(engine.ports()[0].promiscuous, on);
        assert.equal(promiscuity(near), on ? 1 : 0);
      }
    } finally {
      await engine.close();
    }
    assert.equal(promiscuity(near), 0);
  });

test('ports that have no such thing say what DPDK says, and only to what they are not', async () => {
  const engine = await engineOf(['net_null0', 'net_ring0']);
  try {
    for (const port of [0, 1]) {
      engine.setPromiscuous(port, true);
      assert.throws(() => engine.setPromiscuous(port, false), {
        code: 'NOT_SUPPORTED',
        message: 'Operation not supported',
      });
      assert.equal(engine.ports()[port].promiscuous, true);
    }
  } finally {
    await engine.close();
  }
});
