/** Zero copy and VLANs by socket, with an uplink in another network namespace: tags are what they are without zero copy. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RawHost } from '../kit/raw-host.ts';
import { probeXdp } from '../peers/af-xdp.ts';
import { ip, NetLab } from '../peers/netns.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

const skip = await probeXdp();

const HOST = macOf(0x42);
const ACCESS = 77;
const NATIVE = 5;

for (const [guestVlan, type, strip] of [
  ['trust', 0x8100, false],
  ['qinq', 0x88a8, true],
] as const)
  test(`an access guest and a trunk guest, --guest-vlan ${guestVlan}, tags ${strip ? 'taken off' : 'left'}`, {
    skip,
    timeout: 60_000,
  }, async () => {
    const lab = new NetLab();
    const dir = makeTempDir('vlans');
    const tagged = (bytes: Uint8Array, vid: number) =>
      Buffer.concat([bytes.subarray(0, 12), Buffer.from([type >> 8, type & 255, 0, vid]), bytes.subarray(12)]);
    const cable = lab.veth();
    const home = lab.namespace();
    ip('link', 'set', cable.near, 'netns', home);
    ip('-n', home, 'link', 'set', cable.near, 'up');
    const host = new RawHost(cable);
    let running: SwitchProcess | undefined;
    try {
      running = await SwitchProcess.start(
        [
          ...[
            '--socket-file',
            `${dir}/access,vlan=${ACCESS}`,
            '--socket-file',
            `${dir}/trunk,trunk=5-9,native=${NATIVE}`,
          ],
          ...['--vdev', `net_af_xdp0,iface=${home}:${cable.near}`, '-p', '0x1', '--vm2vm', '0', '--zero-copy', '1'],
          ...['--stats', '1', '--guest-vlan', guestVlan, '--vlan-strip', strip ? '1' : '0'],
        ],
        { wholeLine: true },
      );
      for (const [socket, vid] of [
        ['access', ACCESS],
        ['trunk', NATIVE],
      ] as const) {
        const mark = running.mark;
        const guest = await connectGuest({ path: `${dir}/${socket}`, mac: macOf(vid) });
        await running.line(/zero copy: its buffers go to the uplink as they are$/, mark, 20_000);
        const out = frame(HOST, guest.mac, 3, 500);
        guest.send(out);
        guest.flush();
        assert.deepEqual(Buffer.from((await host.waitFrame()) ?? []), tagged(out, vid));
        await running.line(/MAC_ADDRESS .* registered/, mark);
        for (let n = 0; n < 20; n++) {
          const back = frame(guest.mac, HOST, n, 600);
          const expected = socket === 'access' && !strip ? tagged(back, vid) : Buffer.from(back);
          host.send(tagged(back, vid));
          assert.deepEqual(Buffer.from((await guest.waitFrame(10_000)) ?? []), expected);
        }
        // the access guest's frames come by its lane, the first perhaps excepted; a trunk's are the switch's
        const ofLane = () => {
          const table = (running as SwitchProcess).since(mark);
          const [completed, copied] = ['rx_completed', 'rx_copied'].map((name) =>
            Number([...table.matchAll(new RegExp(`zero copy ${name}: +(\\d+)`, 'g'))].at(-1)?.[1]),
          );
          return completed + copied === 20 && (socket === 'access' ? completed >= 19 : completed === 0);
        };
        await running.until('the lane’s counters', ofLane);
        await guest.close();
        await running.line(/Device has been removed/, mark);
      }
    } finally {
      await running?.kill();
      host.close();
      lab.remove();
      removeTempDir(dir);
    }
  });
