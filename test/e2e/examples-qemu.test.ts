/** The worked examples with the drivers they are for: a Linux guest in QEMU with a disk and an entropy source of ours. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { hasFeature, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { QemuGuest } from '../peers/qemu.ts';
import { SwitchProcess } from './switch-process.ts';

const [leftOut] = (await ensurePeers(['qemu'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const MIB = 2 ** 20;
const DISK_MIB = 32;
const QUEUES = 2;
const VIRTIO_BLK_F_FLUSH = 9;
const VIRTIO_BLK_F_MQ = 12;
const example = (name: string) => fileURLToPath(new URL(`../../examples/${name}.ts`, import.meta.url));

/** A guest with both devices, and the programs behind them. */
class Machine {
  readonly dir = makeTempDir('examples');
  readonly image = join(this.dir, 'disk.img');
  readonly guest: QemuGuest;
  blk!: SwitchProcess;
  rng!: SwitchProcess;

  constructor(packed: boolean) {
    writeFileSync(this.image, '');
    truncateSync(this.image, DISK_MIB * MIB);
    // QEMU 7.2 fails an assertion where vhost-user-rng has a socket with reconnect
    const device = (type: string, more: string) => [
      ...['-chardev', `socket,id=${type}c,path=${this.#path(`${type}.sock`)}${type === 'blk' ? ',reconnect=1' : ''}`],
      ...[
        '-device',
        `vhost-user-${type}-pci,id=${type}0,chardev=${type}c,vectors=0,packed=${packed ? 'on' : 'off'}${more}`,
      ],
    ];
    this.guest = new QemuGuest({
      name: packed ? 'packed' : 'split',
      cpus: QUEUES,
      kernelArgs: ['g_mods=virtio_blk,virtio_rng'],
      args: [...device('blk', `,num-queues=${QUEUES}`), ...device('rng', '')],
    });
  }

  #path(name: string): string {
    return join(this.dir, name);
  }

  #start(name: string, args: readonly string[]): Promise<SwitchProcess> {
    const options = { main: example(`vhost-user-${name}`), node: ['--conditions=source'], wholeLine: true };
    return SwitchProcess.start(['--socket-path', this.#path(`${name}.sock`), ...args], options);
  }

  async startBlk(): Promise<void> {
    this.blk = await this.#start('blk', ['--blk-file', this.image]);
  }

  async startRng(): Promise<void> {
    this.rng = await this.#start('rng', []);
  }

  async start(): Promise<void> {
    await this.startBlk();
    await this.startRng();
    await this.guest.start();
  }

  /** Ends everything, by force. */
  async end(): Promise<void> {
    await this.guest.stop();
    await this.blk?.kill();
    await this.rng?.kill();
    removeTempDir(this.dir);
  }

  /** Runs a command in the guest, which must succeed. */
  async sh(command: string, ms = 60_000): Promise<string> {
    const { status, output } = await this.guest.sh(command, ms);
    assert.equal(status, 0, `${command}: ${output}`);
    return output.trim();
  }

  /** Fills `mib` MiB of the disk from `at` on with random bytes. @returns their checksum */
  async write(at: number, mib: number): Promise<string> {
    await this.sh(`dd if=/dev/urandom of=/tmp/pattern bs=1M count=${mib} && sync`);
    await this.sh(`dd if=/tmp/pattern of=/dev/vda bs=64k seek=${at * 16} conv=notrunc,fsync`);
    return (await this.sh('md5sum </tmp/pattern')).split(' ')[0];
  }

  /** The checksum of that part as the guest reads it from the disk, not from its cache. */
  async read(at: number, mib: number): Promise<string> {
    await this.sh('sync && echo 3 >/proc/sys/vm/drop_caches');
    return (await this.sh(`dd if=/dev/vda bs=64k skip=${at * 16} count=${mib * 16} 2>/dev/null | md5sum`)).split(
      ' ',
    )[0];
  }

  /** The checksum of that part of the file. */
  onHost(at: number, mib: number): string {
    const bytes = Buffer.alloc(mib * MIB);
    const fd = openSync(this.image, 'r');
    assert.equal(readSync(fd, bytes, 0, bytes.length, at * MIB), bytes.length);
    closeSync(fd);
    return createHash('md5').update(bytes).digest('hex');
  }

  /** Waits until the guest is in the middle of writing to the disk's first 16 MiB. */
  async untilWritten(): Promise<void> {
    truncateSync(this.image, DISK_MIB * MIB);
    const before = this.onHost(0, 16);
    await this.blk.until('writing', () => this.onHost(0, 16) !== before);
  }

  /** The features that the guest's driver of the disk has accepted. */
  async features(): Promise<bigint> {
    const bits = await this.sh('cat /sys/block/vda/device/features');
    return [...bits].reduce((sum, bit, i) => (bit === '1' ? sum | (1n << BigInt(i)) : sum), 0n);
  }

  /** Bytes of the entropy source. */
  async entropy(bytes: number): Promise<Buffer> {
    const hex = await this.sh(
      `dd if=/dev/hwrng bs=${bytes} count=1 iflag=fullblock 2>/dev/null | hexdump -v -e '/1 "%02x"'`,
    );
    return Buffer.from(hex, 'hex');
  }

  async assertEntropy(): Promise<void> {
    assert.match(await this.sh('cat /sys/class/misc/hw_random/rng_current'), /virtio_rng/);
    const [one, other] = [await this.entropy(512), await this.entropy(512)];
    assert.equal(one.length, 512);
    assert.ok(new Set(one).size > 100, 'bytes of all kinds');
    assert.notDeepEqual(one, other);
  }
}

for (const packed of [false, true])
  describe(`a Linux guest with a disk and an entropy source of the examples, ${packed ? 'packed' : 'split'} rings`, {
    skip,
    timeout: 300_000,
  }, () => {
    let machine: Machine;
    before(async () => {
      machine = new Machine(packed);
      await machine.start();
    });
    after(() => machine?.end());

    test('the driver takes what is on offer', async () => {
      const features = await machine.features();
      for (const bit of [VIRTIO_F_VERSION_1, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ])
        assert.ok(hasFeature(features, bit), `feature bit ${bit}`);
      assert.equal(hasFeature(features, VIRTIO_F_RING_PACKED), packed);
      assert.equal(await machine.sh('cat /sys/block/vda/size'), String(DISK_MIB * 2048));
      assert.equal(await machine.sh('cat /sys/block/vda/queue/write_cache'), 'write back');
      assert.equal(await machine.sh('ls /sys/block/vda/mq | wc -l'), String(QUEUES));
      assert.equal(await machine.sh('cat /sys/block/vda/serial'), machine.image.slice(-20));
    });

    test('what the guest writes is in the file, and what it reads is that', async () => {
      const sum = await machine.write(4, 8);
      assert.equal(machine.onHost(4, 8), sum);
      assert.equal(await machine.read(4, 8), sum);
    });

    test('both processors of the guest write at a time, each its own part', async () => {
      await machine.sh('dd if=/dev/urandom of=/tmp/a bs=1M count=4; dd if=/dev/urandom of=/tmp/b bs=1M count=4');
      const dd = (cpu: number, file: string, at: number) =>
        `taskset ${cpu} dd if=/tmp/${file} of=/dev/vda bs=4k seek=${at * 256} conv=notrunc,fsync 2>/dev/null`;
      await machine.sh(`${dd(1, 'a', 16)} & ${dd(2, 'b', 20)} & wait`);
      const sums = (await machine.sh('md5sum </tmp/a; md5sum </tmp/b')).split('\n').map((line) => line.split(' ')[0]);
      assert.deepEqual([machine.onHost(16, 4), machine.onHost(20, 4)], sums);
    });

    test('/dev/hwrng gives random bytes', () => machine.assertEntropy());

    test('the guest reboots and finds what it has written', async () => {
      const sum = await machine.write(24, 4);
      await machine.guest.reset();
      assert.equal(await machine.read(24, 4), sum);
      await machine.assertEntropy();
    });

    for (const how of ['stopped by SIGTERM', 'killed'] as const)
      test(`the disk's program is ${how} while the guest writes, and started again: nothing is lost`, async () => {
        await machine.sh('dd if=/dev/urandom of=/tmp/pattern bs=1M count=16');
        const sum = (await machine.sh('md5sum </tmp/pattern')).split(' ')[0];
        const mark = machine.blk.mark;
        const written = machine.sh('dd if=/tmp/pattern of=/dev/vda bs=4k conv=notrunc,fsync', 120_000);
        await machine.untilWritten();
        if (how === 'killed') await machine.blk.kill();
        else assert.equal(await machine.blk.stop('SIGTERM'), 'ended with status 0', machine.blk.since(mark));
        await machine.startBlk();
        await written;
        assert.equal(machine.onHost(0, 16), sum);
        assert.equal(await machine.read(0, 16), sum);
      });
  });
