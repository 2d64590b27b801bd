/** Reading QEMU command lines: real ones, and anything else. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { readQemuLine } from '../../src/doctor/qemu-line.ts';

const words = (line: string) => line.trim().split(/\s+/);

test("QEMU's command line: as people write it", () => {
  const line = readQemuLine(
    words(`-name guest=web,debug-threads=on --enable-kvm -m size=4096,slots=2,maxmem=8G -smp 4
      -object memory-backend-file,id=ram0,size=4G,mem-path=/dev/hugepages,share,prealloc=yes -numa node,memdev=ram0
      -chardev socket,id=c0,path=/run/a,,b,server,nowait -netdev type=vhost-user,id=n0,chardev=c0,queues=2
      -device driver=virtio-net-pci,netdev=n0,mq=on,vectors=6,packed=on -qmp unix:/run/qmp,server=on,wait=off
      -chardev socket,id=m0,path=/run/mon,server=on,wait=off -mon chardev=m0,mode=control -mem-prealloc`),
  );
  assert.equal(line.name, 'web');
  assert.equal(line.accelerator, 'kvm');
  assert.equal(line.memory, 4 * 2 ** 30);
  assert.deepEqual(line.usedBackends, ['ram0']);
  assert.deepEqual(line.backends.get('ram0'), {
    ...{ id: 'ram0', kind: 'memory-backend-file', size: 4 * 2 ** 30, share: true, prealloc: true, hugetlb: false },
    path: '/dev/hugepages',
  });
  assert.deepEqual(line.sockets.get('c0'), { path: '/run/a,b', server: true, reconnects: false });
  assert.deepEqual(line.nets, [
    { id: 'n0', chardev: 'c0', queues: 2, card: { driver: 'virtio-net-pci', mq: true, packed: true, vectors: 6 } },
  ]);
  assert.deepEqual(line.monitors, ['/run/qmp', '/run/mon']);
  assert.equal(line.prealloc, true);
});

test("QEMU's command line: as libvirt writes it", () => {
  const line = readQemuLine([
    ...words(
      '-name guest=vm1,debug-threads=on -S -machine pc-q35-7.2,usb=off,memory-backend=pc.ram -accel tcg -m size=1048576k',
    ),
    ...[
      '-object',
      '{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"x-use-canonical-path-for-ramblock-id":false,"size":1073741824}',
    ],
    ...words('-chardev socket,id=charnet0,fd=26,reconnect=1'),
    ...['-netdev', '{"type":"vhost-user","chardev":"charnet0","queues":2,"id":"hostnet0"}'],
    ...['-device', '{"driver":"virtio-net-pci","mq":true,"vectors":6,"netdev":"hostnet0","id":"net0"}'],
    ...words(
      '-chardev socket,id=charmonitor,fd=24,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control',
    ),
    ...words('-pidfile /var/lib/libvirt/qemu/x'),
  ]);
  assert.equal(line.memory, 2 ** 30);
  assert.equal(line.isLibvirt, true);
  assert.equal(line.accelerator, 'tcg');
  const { kind, share, size } = line.backends.get('pc.ram')!;
  assert.deepEqual([kind, share, size], ['memory-backend-memfd', true, 2 ** 30]);
  assert.deepEqual(line.nets[0].card, { driver: 'virtio-net-pci', mq: true, packed: false, vectors: 6 });
  assert.deepEqual(line.sockets.get('charnet0'), { server: false, reconnects: true });
  assert.deepEqual(line.monitors, [], 'a monitor by descriptor is libvirtd’s own');
});

test("QEMU's command line: what it has by itself", () => {
  const { memory, accelerator, usedBackends, nets } = readQemuLine([]);
  assert.deepEqual([memory, accelerator, usedBackends, nets], [128 * 2 ** 20, 'tcg', [], []]);
  assert.equal(readQemuLine(words('-M pc,accel=kvm:tcg')).accelerator, 'kvm:tcg');
  assert.deepEqual(readQemuLine(words('-nic vhost-user,chardev=c,id=x')).nets[0].card?.driver, 'virtio-net-pci');
});

test("QEMU's command line: any words at all are read", () => {
  const word = fc.oneof(
    fc.string(),
    fc.constantFrom(
      ...words(
        '-m -object -netdev -device -chardev -qmp -mon -numa -machine -name , = {} { [1] null {"id":{}} unix: unix:{ socket,id= size=',
      ),
    ),
  );
  fc.assert(
    fc.property(fc.array(word, { maxLength: 30 }), (line) => {
      const read = readQemuLine(line);
      assert.ok(read.memory >= 0);
      for (const net of read.nets) assert.equal(typeof net.id, 'string');
    }),
  );
});
