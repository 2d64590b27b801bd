/**
 * A host's end of TCP streams, run as a program in a network namespace: what comes to port 5001 is answered with its SHA-256 at the
 * end; who connects to port 5002 gets as many MiB as the argument says, whose SHA-256 is printed first.
 */
import { createHash, randomBytes } from 'node:crypto';
import { createServer } from 'node:net';

const bytes = randomBytes(2 ** 20 * Number(process.argv[2]));

const sink = createServer({ allowHalfOpen: true }, (socket) => {
  const hash = createHash('sha256');
  socket.on('data', (data) => hash.update(data));
  socket.on('end', () => socket.end(`${hash.digest('hex')}\n`));
  socket.on('error', (error) => console.log(`sink: ${error.message}`));
});
const source = createServer((socket) => {
  socket.on('error', (error) => console.log(`source: ${error.message}`));
  socket.end(bytes);
});
sink.listen(5001, () =>
  source.listen(5002, () => console.log(`ready ${createHash('sha256').update(bytes).digest('hex')}`)),
);
