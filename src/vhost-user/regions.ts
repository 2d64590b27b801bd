/**
 * What is wrong with the guest memory a front end describes, before anything is mapped.
 * @see QEMU docs/interop/vhost-user.rst "Memory region description"
 */
import { protocolError, type RegionPayload, type Subject } from './message.ts';

const LIMIT = 2 ** 53;

const hex = (n: number) => `0x${n.toString(16)}`;
const where = ({ guestAddr, size }: RegionPayload) => `guest address ${hex(guestAddr)}, ${hex(size)} bytes`;

/**
 * Fails if a region of `added` is empty, ends beyond 2⁵³, or overlaps another of `added` or of `present`, as the guest or
 * as the front end addresses it. Throws ProtocolError about `request`.
 */
export function checkRegions(
  request: Subject,
  present: readonly RegionPayload[],
  added: readonly RegionPayload[],
): void {
  const before = [...present];
  for (const region of added) {
    checkRegion(request, region);
    for (const other of before) checkApart(request, region, other);
    before.push(region);
  }
}

function checkRegion(request: Subject, region: RegionPayload): void {
  const { guestAddr, size, frontendAddr, fileOff } = region;
  if (size === 0) throw protocolError('PROTOCOL_MEMORY', request, `the region at ${where(region)} is empty`);
  if (Math.max(guestAddr, frontendAddr, fileOff) + size > LIMIT) {
    throw protocolError('PROTOCOL_MEMORY', request, `the region at ${where(region)} ends beyond 2^53`);
  }
}

function checkApart(request: Subject, a: RegionPayload, b: RegionPayload): void {
  const guestApart = a.guestAddr + a.size <= b.guestAddr || b.guestAddr + b.size <= a.guestAddr;
  const frontendApart = a.frontendAddr + a.size <= b.frontendAddr || b.frontendAddr + b.size <= a.frontendAddr;
  if (guestApart && frontendApart) return;
  const space = guestApart ? 'user addresses' : 'guest addresses';
  throw protocolError('PROTOCOL_MEMORY', request, `regions overlap in their ${space}: ${where(b)}; ${where(a)}`);
}
