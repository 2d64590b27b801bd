/**
 * Brings a connection to where a request may be sent.
 */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import type { FakeDevice } from './fake-device.ts';
import { GOLDEN, type Golden, setFeatures, setProtocolFeatures } from './golden.ts';
import type { RawPeer } from './harness.ts';

const plain = (hex: string) => hex.replaceAll(/\s/g, '');

/** Bytes of a message in hex. */
export const bytesIn = (hex: string): number => plain(hex).length / 2;

export interface Preparation extends Pick<Golden, 'needs' | 'features' | 'before'> {
  /** protocol features beside those that the request needs */
  readonly more?: number;
}

/** Waits until the back end has dealt with everything sent so far. */
export async function settle(peer: RawPeer): Promise<void> {
  peer.send(GOLDEN[0].request);
  assert.equal(await peer.read(20), plain(GOLDEN[0].answer as string));
}

/** Negotiates what a request needs, and sends what goes before it. What that tells the device is forgotten. */
export async function prepare(
  peer: RawPeer,
  device: FakeDevice,
  { needs = 0, features, before = [], more = 0 }: Preparation,
): Promise<void> {
  if ((needs | more) !== 0) peer.send(setProtocolFeatures(needs | more));
  if (features !== undefined) peer.send(setFeatures(features));
  for (const { request, answer } of before) {
    peer.send(request);
    if (answer === undefined) continue;
    const fds: number[] = [];
    assert.equal(await peer.read(bytesIn(answer), fds), plain(answer));
    for (const fd of fds) closeSync(fd);
  }
  await settle(peer);
  device.calls.length = 0;
}
