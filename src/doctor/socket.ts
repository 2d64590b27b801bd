/**
 * A vhost-user socket: whether its file is there, who listens on it, who may connect.
 */
import { dirname } from 'node:path';
import { type Finding, failure, fine, shellWord, unseen, warning } from './finding.ts';
import type { Guest } from './guest.ts';
import type { Listener } from './listeners.ts';
import { ACCESS, accountName, type Credentials, describeProcess, modeAllows, modeText } from './process.ts';
import type { FileFacts, Source } from './source.ts';

const S_IFMT = 0o170000;
const S_IFSOCK = 0o140000;
/** sun_path, with the zero at its end. */
const MAX_PATH_BYTES = 107;

/** A socket to look at. */
export interface SocketPlace {
  /** absolute, as it is found from here */
  readonly path: string;
  /** who is to connect, if that is known */
  readonly guest?: Guest;
  /** QEMU listens, and the switch connects */
  readonly qemuListens: boolean;
  /** who listens */
  readonly listeners: readonly Listener[];
}

/** socket.…. */
export function checkSocket(source: Source, place: SocketPlace): Finding[] {
  const { path, qemuListens } = place;
  const listener = qemuListens ? 'QEMU' : 'the switch';
  const start = qemuListens ? 'start QEMU first' : `vhost-switch --socket-file ${shellWord(path)}`;
  const facts = source.stat(path);
  if (facts === undefined) {
    const long = Buffer.byteLength(path) > MAX_PATH_BYTES;
    const what = long
      ? `the path ${path} is longer than a socket's may be (${MAX_PATH_BYTES} bytes)`
      : `${path} is not there: ${listener} does not run, or has another path or folder`;
    return [
      failure('socket.file', what, {
        shows: qemuListens
          ? 'the switch waits for a front end that listens'
          : 'QEMU says "Failed to connect to \'…\': No such file or directory", or waits if it has reconnect',
        mend: long ? ['choose a shorter path'] : [start],
      }),
    ];
  }
  if ((facts.mode & S_IFMT) !== S_IFSOCK) {
    const shows = 'QEMU says "Connection refused"; the switch says SOCKET_FOREIGN_FILE';
    const mend = [`look what it is, then: rm ${shellWord(path)}`];
    return [failure('socket.file', `${path} is there, but is no socket`, { shows, mend })];
  }
  return [
    fine('socket.file', `${path} is a socket`),
    checkListeners(source, place, start),
    ...checkWho(source, place, facts),
  ];
}

function checkListeners(source: Source, place: SocketPlace, start: string): Finding {
  const { path, qemuListens, guest, listeners } = place;
  const names = listeners.map(({ pid }) =>
    pid === undefined ? 'a process of another user' : describeProcess(source, pid),
  );
  if (listeners.length === 0)
    return failure('socket.listener', `nobody listens on ${path}: whoever made it was killed`, {
      shows: 'QEMU says "Connection refused", or tries again and again if it has reconnect',
      mend: [qemuListens ? `rm ${shellWord(path)} and start QEMU again` : start],
    });
  if (listeners.length > 1) {
    const others = listeners.slice(1).flatMap(({ pid }) => (pid === undefined ? [] : `kill ${pid}`));
    return failure('socket.listener', `${listeners.length} sockets are bound to ${path}: of ${names.join(' and ')}`, {
      shows: 'guests that were connected first cannot see those that came later: they are on another switch',
      mend: others.length > 0 ? others : ['run the doctor as root to see whose they are, and stop all but one'],
    });
  }
  const [{ pid }] = listeners;
  if (pid === undefined) {
    const what = `somebody listens on ${path}; this user may not see who`;
    return unseen('socket.listener', what, ['run the doctor as root, or as the user of the switch']);
  }
  if (!qemuListens && pid === guest?.pid)
    return failure('socket.listener', `QEMU itself listens on ${path}`, {
      shows: 'switch and QEMU wait for one another',
      mend: [`vhost-switch --client --socket-file ${shellWord(path)}`],
    });
  return fine('socket.listener', `${names[0]} listens on ${path}`);
}

function checkWho(source: Source, { path, guest, qemuListens }: SocketPlace, facts: FileFacts): Finding[] {
  const owner = accountName(source, '/etc/passwd', facts.uid);
  const group = accountName(source, '/etc/group', facts.gid);
  const text = `${path} belongs to ${owner} and group ${group}, mode ${modeText(facts)}`;
  const findings: Finding[] = [];
  if (guest !== undefined && !qemuListens) {
    const { credentials } = guest;
    const user = accountName(source, '/etc/passwd', credentials.uid);
    const closed = foldersOf(path).find((folder) => {
      const rights = source.stat(folder);
      return rights !== undefined && !modeAllows(rights, credentials, ACCESS.search);
    });
    const shows = 'QEMU says "Permission denied", or tries again and again if it has reconnect';
    if (closed !== undefined) {
      const mend = [
        `chmod o+x ${shellWord(closed)}`,
        'or put the socket into a folder that all may enter, such as /run/vhost-switch',
      ];
      findings.push(failure('socket.rights', `QEMU runs as ${user}, who may not enter ${closed}`, { shows, mend }));
    }
    if (!modeAllows(facts, credentials, ACCESS.write))
      findings.push(
        failure('socket.rights', `QEMU runs as ${user}, who may not connect: ${text}`, {
          shows,
          mend: letIn(source, path, credentials),
        }),
      );
  }
  if ((facts.mode & 0o002) !== 0)
    findings.push(
      warning('socket.rights', `everybody may connect: ${text}`, {
        shows: 'any user of this machine can put a device on the switch, and hear and send there',
        mend: ['vhost-switch --socket-mode 0660 --socket-group GROUP', `chmod o-rw ${shellWord(path)}`],
      }),
    );
  return findings.length > 0 ? findings : [fine('socket.rights', text)];
}

function letIn(source: Source, path: string, { gids }: Credentials): string[] {
  const group = accountName(source, '/etc/group', gids[0]);
  return [
    `vhost-switch --socket-file ${shellWord(path)} --socket-group ${shellWord(group)} --socket-mode 0660`,
    `until its next start: chgrp ${shellWord(group)} ${shellWord(path)} && chmod 0660 ${shellWord(path)}`,
  ];
}

/** All folders above a file, from the root. */
function foldersOf(path: string): string[] {
  const folders: string[] = [];
  for (let folder = dirname(path); ; folder = dirname(folder)) {
    folders.unshift(folder);
    if (folder === dirname(folder)) return folders;
  }
}
