/**
 * The frame that tells switches where a guest is now: a reverse ARP request for its own address, sent to all.
 * @see RFC 903
 */

/** The least an Ethernet frame has, without its checksum. */
const FRAME_BYTES = 60;
const ETHERTYPE_RARP = 0x8035;
const HARDWARE_ETHERNET = 1;
const PROTOCOL_IPV4 = 0x0800;
const REQUEST_REVERSE = 3;

/** @param mac 6 bytes */
export function rarpFrame(mac: Uint8Array): Uint8Array {
  const frame = new Uint8Array(FRAME_BYTES);
  const view = new DataView(frame.buffer);
  frame.fill(0xff, 0, 6);
  frame.set(mac, 6);
  view.setUint16(12, ETHERTYPE_RARP);
  view.setUint16(14, HARDWARE_ETHERNET);
  view.setUint16(16, PROTOCOL_IPV4);
  frame[18] = mac.length;
  frame[19] = 4;
  view.setUint16(20, REQUEST_REVERSE);
  frame.set(mac, 22);
  frame.set(mac, 32);
  return frame;
}
