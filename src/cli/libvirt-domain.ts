/** qemu-wrap --libvirt: a domain's file for the switch, to standard output; what was changed, to standard error. */
import { createReadStream } from 'node:fs';
import type { Readable } from 'node:stream';
import { SwitchError } from '../errors.ts';
import { rewriteDomain } from '../launch/domain-xml.ts';
import type { QemuWrapSettings } from './qemu-wrap-options.ts';

/** Bytes of a file, at most: more than a domain may have, so that the domain's own limit is what is told. */
const MAX_BYTES = 8 * 1024 * 1024;

/**
 * Rewrites the domain in `file`, `-` for standard input. Throws SwitchError: `BAD_XML` for what cannot be read as XML, `BAD_DOMAIN` for
 * what is no domain of QEMU's, or has no interface that was asked for; Node's own error for a file that cannot be read.
 */
export async function rewriteDomainFile(file: string, settings: QemuWrapSettings): Promise<void> {
  const { sockets, macs, queues, offloads, reconnect } = settings;
  const name = file === '-' ? 'standard input' : file;
  const wish = { sockets, macs, queues, offloads, reconnect };
  const { xml, changes, left } = await named(name, async () =>
    rewriteDomain(await readText(file === '-' ? process.stdin : createReadStream(file)), wish),
  );
  process.stdout.write(xml);
  const said = changes.length > 0 ? changes : ['nothing is changed'];
  for (const line of [...said, ...left]) process.stderr.write(`qemu-wrap: ${line}\n`);
}

/** Puts the file's name before what is wrong with its content. */
async function named<T>(name: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof SwitchError) throw new SwitchError(error.code, `${name}: ${error.message}`);
    throw error;
  }
}

async function readText(stream: Readable): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > MAX_BYTES)
      throw new SwitchError('BAD_XML', `is longer than ${MAX_BYTES} bytes, too long for a domain`);
    chunks.push(chunk);
  }
  try {
    // a byte order mark stays where it is
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(Buffer.concat(chunks));
  } catch (error) {
    if (error instanceof TypeError) throw new SwitchError('BAD_XML', 'is not in UTF-8; convert it');
    throw error;
  }
}
