/** What a test guest may be made of, and QEMU's command line for it. */

/** Offloads QEMU's virtio-net has on by default; each is a property of the device. */
export const OFFLOADS = ['csum', 'guest_csum', 'gso', 'guest_tso4', 'guest_tso6', 'guest_ecn', 'guest_ufo'].concat([
  'host_tso4',
  'host_tso6',
  'host_ecn',
  'host_ufo',
]);

/** How a guest is set up. */
export interface QemuGuestOptions {
  /** Names the guest in messages, and is its host name: letters, digits, hyphens. */
  name: string;
  /** The vhost-user socket. Without one the guest has no network device. */
  socket?: string;
  /** Default 52:54:00:00:00:01. */
  mac?: string;
  /** Address and prefix length of eth0, such as 10.0.0.1/24. */
  ip?: string;
  /** Default 192. Above 2816 a q35 has some of it above 4 GiB, as a second region. */
  memoryMiB?: number;
  /** What guest memory is: memfd; a file in /dev/shm; a file in the temporary folder; what QEMU has by itself. Default memfd. */
  memory?: 'memfd' | 'shm' | 'file' | 'own';
  /** Room for memory hot-plug, see `QemuGuest.plugMemory`. Default none. */
  hotplug?: { slots: number; maxMiB: number };
  /** Virtual CPUs; default: as many as queues. */
  cpus?: number;
  /** Queue pairs; the guest uses one until `ethtool -L eth0 combined N`. Default 1. */
  queues?: number;
  /** Entries of each receive or transmit ring: 256 (QEMU's default), 512 or 1024. */
  rxQueueSize?: number;
  txQueueSize?: number;
  /** VIRTIO_F_RING_PACKED is offered to the guest. Default false. */
  packed?: boolean;
  /** The legacy device, without VIRTIO_F_VERSION_1. Default false. */
  legacy?: boolean;
  /** VIRTIO_NET_F_MRG_RXBUF is offered to the guest. Default true. */
  mergeable?: boolean;
  /** false turns all of {@link OFFLOADS} off. Default true, as QEMU has it. */
  offloads?: boolean;
  /**
   * An Intel IOMMU that the guest's driver of the device uses: VIRTIO_F_ACCESS_PLATFORM. Default false. Legacy
   * interrupts keep going without interrupt remapping, which is off.
   */
  iommu?: boolean;
  /** QEMU makes the socket and listens: it then blocks, QMP too, until a back end connects. Default false. */
  server?: boolean;
  /** Seconds after which QEMU connects again to a lost back end, or to one that is not there yet. */
  reconnect?: number;
  /** Waits for `migrate` of another guest instead of booting; use `launch`. Default false. */
  incoming?: boolean;
  /** Socket of a vhost-user back end for a disk, /dev/vda. */
  blk?: string;
  /** Socket of a vhost-user back end for an entropy source, /dev/hwrng. */
  rng?: string;
  /** Properties of virtio-net-pci, such as `host_mtu=9000`. */
  device?: readonly string[];
  /** Properties of `-netdev vhost-user`. */
  netdev?: readonly string[];
  /** Added to the kernel's command line; `g_mods=a,b` loads modules, in place of those that `blk` and `rng` need. */
  kernelArgs?: readonly string[];
  /** QEMU arguments, as they are. */
  args?: readonly string[];
  /**
   * MSI-X vectors of the network device. Default 0, interrupts by INTx: QEMU 7.2 under TCG crashes in
   * msix_set_vector_notifiers when a guest turns MSI-X on for a vhost-user device.
   */
  vectors?: number;
  /** Default: kvm where it really works, else tcg. The variable GUEST_ACCEL decides when it is set. */
  accel?: 'kvm' | 'tcg';
  /** Of the QEMU process. Default 10: under TCG guests compete with the switch that is tested. */
  nice?: number;
  /** A program and its arguments that replaces itself by QEMU, such as `nsenter --net=FILE`. */
  launcher?: readonly string[];
}

/** What the command line takes from outside the options. */
export interface QemuPlaces {
  readonly kernel: string;
  readonly initrd: string;
  readonly accel: string;
  /** a file in the guest's own folder */
  path(file: string): string;
}

/** QEMU's arguments. */
export function qemuArguments(options: QemuGuestOptions, places: QemuPlaces): string[] {
  const { name, ip = '', memoryMiB = 192, queues = 1, cpus = queues, hotplug, iommu } = options;
  const console_ = 'console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check';
  const append = [console_, `g_name=${name}`, `g_ip=${ip}`];
  if (iommu) append.push('intel_iommu=on');
  if (hotplug) append.push('memhp_default_state=online');
  const modules = [options.blk && 'virtio_blk', options.rng && 'virtio_rng'].filter(Boolean);
  if (modules.length > 0) append.push(`g_mods=${modules}`);
  append.push(...(options.kernelArgs ?? []));
  const memory = [`${memoryMiB}`, ...(hotplug ? [`slots=${hotplug.slots}`, `maxmem=${hotplug.maxMiB}M`] : [])];
  return [
    ...['-name', name, '-accel', places.accel, '-smp', String(cpus), '-m', memory.join(',')],
    ...machineArguments(options, places),
    ...['-nodefaults', '-no-user-config', '-display', 'none'],
    ...['-kernel', places.kernel, '-initrd', places.initrd, '-append', append.join(' ')],
    ...['-chardev', `file,id=log,path=${places.path('log')}`, '-serial', 'chardev:log'],
    ...['-chardev', `socket,id=agent,path=${places.path('agent')},server=on,wait=off`, '-serial', 'chardev:agent'],
    ...['-qmp', `unix:${places.path('qmp')},server=on,wait=off`],
    // before the devices behind it
    ...(iommu ? ['-device', 'intel-iommu,intremap=off,device-iotlb=on'] : []),
    // On the root bus a device has no ATS, whatever it is told: QEMU then says of some translations only that they are gone, when
    // the guest flushes lazily.
    ...(iommu ? ['-device', 'pcie-root-port,id=port0,chassis=1'] : []),
    ...networkArguments(options),
    ...peerDevice('vhost-user-blk-pci', 'blk0', options.blk),
    ...peerDevice('vhost-user-rng-pci', 'rng0', options.rng),
    ...(options.incoming ? ['-incoming', 'defer'] : []),
    ...(options.args ?? []),
  ];
}

function machineArguments(options: QemuGuestOptions, places: QemuPlaces): string[] {
  if (options.memory === 'own') return ['-M', 'q35'];
  return ['-M', 'q35,memory-backend=mem', '-object', memoryBackend(options, places)];
}

function memoryBackend({ memory = 'memfd', memoryMiB = 192, name }: QemuGuestOptions, places: QemuPlaces): string {
  const rest = `id=mem,size=${memoryMiB}M,share=on`;
  if (memory === 'memfd') return `memory-backend-memfd,${rest}`;
  // QEMU makes a file of its own in a folder, and unlinks it at once; one that is named is removed by nobody
  const folder = memory === 'shm' ? '/dev/shm' : places.path('');
  if (folder.includes(',')) throw new Error(`guest ${name}: a comma in ${folder}`);
  return `memory-backend-file,${rest},mem-path=${folder}`;
}

function networkArguments(options: QemuGuestOptions): string[] {
  const { socket, mac = '52:54:00:00:00:01', server, reconnect, queues = 1, vectors = 0 } = options;
  if (socket === undefined) return [];
  const chardev = ['socket', 'id=net0', `path=${socket}`];
  if (server) chardev.push('server=on', 'wait=off');
  if (reconnect !== undefined) chardev.push(`reconnect=${reconnect}`);
  const netdev = ['vhost-user', 'id=n0', 'chardev=net0', `queues=${queues}`, ...(options.netdev ?? [])];
  const device = ['virtio-net-pci', 'id=nic0', 'netdev=n0', `mac=${mac}`, 'romfile=', `vectors=${vectors}`];
  if (queues > 1) device.push('mq=on');
  if (options.packed) device.push('packed=on');
  if (options.legacy) device.push('disable-modern=on', 'disable-legacy=off');
  if (options.mergeable === false) device.push('mrg_rxbuf=off');
  if (options.offloads === false) device.push(...OFFLOADS.map((offload) => `${offload}=off`));
  if (options.iommu) device.push('disable-legacy=on', 'iommu_platform=on', 'ats=on', 'bus=port0');
  if (options.rxQueueSize !== undefined) device.push(`rx_queue_size=${options.rxQueueSize}`);
  if (options.txQueueSize !== undefined) device.push(`tx_queue_size=${options.txQueueSize}`);
  device.push(...(options.device ?? []));
  return ['-chardev', chardev.join(','), '-netdev', netdev.join(','), '-device', device.join(',')];
}

/** A device of which the vhost-user back end is all there is. */
function peerDevice(device: string, id: string, socket: string | undefined): string[] {
  if (socket === undefined) return [];
  return ['-chardev', `socket,id=${id}c,path=${socket}`, '-device', `${device},id=${id},chardev=${id}c,vectors=0`];
}
