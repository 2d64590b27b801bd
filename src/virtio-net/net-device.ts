/**
 * The network device: what it has beyond any virtio device. Packets never come here.
 * @see VIRTIO 1.2 §5.1
 */
import { ProtocolError } from '../errors.ts';
import type { WindowPool } from '../mem/window.ts';
import { hasFeature, VIRTIO_F_VERSION_1 } from '../uapi/virtio.ts';
import { VIRTIO_NET_CONFIG, VIRTIO_NET_MAX_PAIRS, VIRTIO_NET_S_LINK_UP } from '../uapi/virtio-net.ts';
import type { DeviceModel, Postcopy } from '../vhost/device-model.ts';
import { VirtioDevice, type VirtioDeviceEvents } from '../vhost/virtio-device.ts';
import type { NetDatapath } from './net-datapath.ts';
import { type NetFeatureOptions, offeredNetFeatures } from './net-features.ts';
import { decodeNetState, encodeNetState, type GuestAddress } from './net-state.ts';
import { rarpFrame } from './rarp.ts';

/** §5.1.4.1: an MTU that a device may have. */
export const MIN_MTU = 68;
export const MAX_MTU = 65535;
const DEFAULT_MTU = 1500;
/** §5.1.4: unknown speed, and full duplex. */
const SPEED_UNKNOWN = 0xffffffff;
const DUPLEX_FULL = 1;
const MAC_BYTES = 6;

const { off: CONFIG_OFF, size: CONFIG_BYTES } = VIRTIO_NET_CONFIG;

export interface NetDeviceOptions extends NetFeatureOptions {
  /** the device's number: its port in the switch, which exists in the datapath */
  readonly id: number;
  /** front ends may ask for the config space; default false, since QEMU has it from elsewhere and warns at each start */
  readonly configSpace?: boolean | undefined;
  /** 68 to 65535, default 1500 */
  readonly mtu?: number | undefined;
  /** Mbit/s, for the config space; default unknown */
  readonly speed?: number | undefined;
  /** The addresses that the switch has learned on the port: part of what migrates. */
  readonly knownAddresses?: (() => Promise<readonly GuestAddress[]> | readonly GuestAddress[]) | undefined;
  /** The addresses that the switch which the guest comes from had learned. The load has ended when the promise resolves. */
  readonly onAddresses?: ((addresses: readonly GuestAddress[]) => Promise<void> | void) | undefined;
  /** Opens a userfaultfd; without it postcopy migration is not on offer. */
  readonly createPostcopy?: (() => Postcopy) | undefined;
}

/** One network device. Vring 2n receives and vring 2n + 1 transmits, for the guest, in pair n. */
export class NetDevice extends VirtioDevice {
  /** Throws RangeError for options out of range. */
  constructor(options: NetDeviceOptions, pool: WindowPool, datapath: NetDatapath, events: VirtioDeviceEvents) {
    const { id, createPostcopy } = options;
    super({ id, model: new NetModel(options, datapath), pool, datapath, events, createPostcopy });
  }
}

function checkOptions({ pairs, mtu = DEFAULT_MTU, mac }: NetDeviceOptions): void {
  if (!Number.isInteger(pairs) || pairs < 1 || pairs > VIRTIO_NET_MAX_PAIRS)
    throw new RangeError(`${pairs} queue pairs, must be 1 to ${VIRTIO_NET_MAX_PAIRS}`);
  if (!isMtu(mtu)) throw new RangeError(`MTU ${mtu}, must be ${MIN_MTU} to ${MAX_MTU}`);
  if (mac !== undefined && mac.length !== MAC_BYTES) throw new RangeError(`a MAC address of ${mac.length} bytes`);
}

const isMtu = (mtu: number) => Number.isInteger(mtu) && mtu >= MIN_MTU && mtu <= MAX_MTU;

class NetModel implements DeviceModel {
  readonly offeredFeatures: bigint;
  readonly maxVrings: number;
  readonly queueNum: number;
  readonly configOnOffer: boolean;
  /** The first pair: a guest need not use the others. */
  readonly readyVrings = [0, 1];
  readonly #options: NetDeviceOptions;
  readonly #datapath: NetDatapath;
  readonly #config = new Uint8Array(CONFIG_BYTES);
  readonly #view = new DataView(this.#config.buffer);

  constructor(options: NetDeviceOptions, datapath: NetDatapath) {
    checkOptions(options);
    const { pairs, mtu = DEFAULT_MTU, mac, speed = SPEED_UNKNOWN } = options;
    this.offeredFeatures = offeredNetFeatures(options);
    this.maxVrings = 2 * pairs;
    this.queueNum = pairs;
    this.configOnOffer = options.configSpace ?? false;
    this.#options = options;
    this.#datapath = datapath;
    if (mac !== undefined) this.#config.set(mac, CONFIG_OFF.mac);
    this.#view.setUint16(CONFIG_OFF.status, VIRTIO_NET_S_LINK_UP, true);
    this.#view.setUint16(CONFIG_OFF.max_virtqueue_pairs, pairs, true);
    this.#view.setUint16(CONFIG_OFF.mtu, mtu, true);
    this.#view.setUint32(CONFIG_OFF.speed, speed, true);
    this.#config[CONFIG_OFF.duplex] = DUPLEX_FULL;
  }

  configSpace(): Uint8Array {
    return this.#config;
  }

  /** A legacy driver may write its address (§5.1.4.3); all else is read-only. */
  setConfig(offset: number, bytes: Uint8Array, migration: boolean, features: bigint): void {
    const isLegacy = !hasFeature(features, VIRTIO_F_VERSION_1);
    if (!migration && !(isLegacy && offset + bytes.length <= CONFIG_OFF.mac + MAC_BYTES)) {
      const range = `bytes ${offset} to ${offset + bytes.length}`;
      throw new ProtocolError('BAD_CONFIG', 'SET_CONFIG', `${range} of a network device’s config space are read-only`);
    }
    this.#config.set(bytes, offset);
  }

  async sendRarp(mac: Uint8Array): Promise<void> {
    await this.#datapath.inject(this.#options.id, rarpFrame(mac));
  }

  setMtu(mtu: number): void {
    if (!isMtu(mtu))
      throw new ProtocolError('PROTOCOL_VALUE', 'NET_SET_MTU', `MTU ${mtu}, must be ${MIN_MTU} to ${MAX_MTU}`);
    this.#view.setUint16(CONFIG_OFF.mtu, mtu, true);
  }

  async save(): Promise<Uint8Array> {
    const addresses = (await this.#options.knownAddresses?.()) ?? [];
    return encodeNetState({
      mtu: this.#view.getUint16(CONFIG_OFF.mtu, true),
      mac: this.#config.slice(CONFIG_OFF.mac, CONFIG_OFF.mac + MAC_BYTES),
      status: this.#view.getUint16(CONFIG_OFF.status, true),
      addresses,
    });
  }

  async load(bytes: Uint8Array): Promise<void> {
    const { mtu, mac, status, addresses } = decodeNetState(bytes);
    if (!isMtu(mtu)) throw new ProtocolError('BAD_STATE', 'CHECK_DEVICE_STATE', `MTU ${mtu} makes no sense`);
    this.#view.setUint16(CONFIG_OFF.mtu, mtu, true);
    this.#config.set(mac, CONFIG_OFF.mac);
    this.#view.setUint16(CONFIG_OFF.status, status, true);
    await this.#options.onAddresses?.(addresses);
  }
}
