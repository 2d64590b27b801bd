/**
 * The errors of this package. Each carries a stable `code` that programs may test; messages are for people and may change.
 * The packet path throws none of them: it counts drops and stops the ring at fault.
 */
import { getSystemErrorMessage, getSystemErrorName } from 'node:util';

/** Base of all errors thrown on purpose by this package. */
export class SwitchError extends Error {
  /** Stable name of the fault. */
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.name = new.target.name;
    this.code = code;
  }
}

/** What can be wrong with a command line. */
export type ConfigErrorCode =
  | 'CONFIG_UNKNOWN_OPTION'
  | 'CONFIG_AMBIGUOUS_OPTION'
  | 'CONFIG_MISSING_VALUE'
  | 'CONFIG_UNEXPECTED_VALUE'
  | 'CONFIG_UNEXPECTED_WORD'
  | 'CONFIG_INVALID_VALUE'
  | 'CONFIG_CONFLICT'
  | 'CONFIG_NOT_YET';

/** An option that is unknown, malformed, out of range, in conflict with another, or of a later version. */
export class ConfigError extends SwitchError {
  declare readonly code: ConfigErrorCode;
  /** The option at fault with its dashes, for example `--stats`; the word itself when it is no option. */
  readonly option: string;
  /** The valid values, in words, when the value was at fault. */
  readonly range: string | undefined;

  /** The message becomes `OPTION VALUE: PROBLEM`; `value` is the text given, where it helps to see it. */
  constructor(code: ConfigErrorCode, option: string, problem: string, more: { value?: string; range?: string } = {}) {
    super(code, `${option}${more.value ? ` ${more.value}` : ''}: ${problem}`);
    this.option = option;
    this.range = more.range;
  }
}

/** A failed system call. `code` is the name of the errno, for example `EADDRINUSE`. */
export class SysError extends SwitchError {
  /** Name of the system call, for example `bind`. */
  readonly syscall: string;
  /** The errno, positive. */
  readonly errno: number;

  /** @param what the object of the call, for example a path; part of the message. */
  constructor(syscall: string, errno: number, what?: string) {
    const name = getSystemErrorName(-errno);
    super(name, `${syscall}${what === undefined ? '' : ` ${what}`}: ${name}: ${getSystemErrorMessage(-errno)}`);
    this.syscall = syscall;
    this.errno = errno;
  }
}

/** A vhost-user message that breaks the protocol; it costs the peer its connection at worst. */
export class ProtocolError extends SwitchError {
  /** Name of the request, for example `SET_MEM_TABLE`. */
  readonly request: string;

  /** @param problem what is wrong; the message becomes `REQUEST: problem`. */
  constructor(code: string, request: string, problem: string) {
    super(code, `${request}: ${problem}`);
    this.request = request;
  }
}
