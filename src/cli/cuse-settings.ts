/**
 * What options say of the character device.
 */
import { ConfigError } from '../errors.ts';
import { type Given, givenValue, optionName, spell, valueOrDefault } from './options.ts';
import { SWITCH } from './switch-options.ts';

/** What the kernel keeps of a device's name, bytes. */
const MAX_DEVICE_NAME = 63;

/** Front ends come by a character device, alone or beside sockets. */
export const hasCuse = (given: readonly Given[]): boolean => valueOrDefault(given, SWITCH.vhost) !== 'user';

/** The character device's name, without `/dev/`, or undefined if there is none. Throws ConfigError. */
export function cuseNameOf(given: readonly Given[]): string | undefined {
  if (!hasCuse(given)) return undefined;
  if (valueOrDefault(given, SWITCH.vhost) === 'cuse') refuseSockets(given);
  const name = `${valueOrDefault(given, SWITCH.devBasename)}-${givenValue(given, SWITCH.devIndex) ?? 0}`;
  if (/^[\w.+:@-]+$/.test(name) && name.length <= MAX_DEVICE_NAME) return name;
  const problem = `/dev/${name} cannot be a device's name: at most ${MAX_DEVICE_NAME} letters, digits, and . _ + : @ -`;
  throw new ConfigError('CONFIG_CONFLICT', optionName(SWITCH.devBasename), problem);
}

function refuseSockets(given: readonly Given[]): void {
  for (const row of [SWITCH.socketFile, SWITCH.client] as const) {
    if (givenValue<unknown>(given, row) === undefined) continue;
    const problem = 'not with --vhost cuse, which has no sockets; --vhost both has both';
    throw new ConfigError('CONFIG_CONFLICT', optionName(row), problem);
  }
}

/** What the user should know of options that name the character device when there is none. */
export function cuseNotes(given: readonly Given[]): string[] {
  if (hasCuse(given)) return [];
  const index = given.findLast(({ row }) => row === SWITCH.devIndex);
  const number = given.findLast(({ row }) => row === SWITCH.devNumber);
  const sameSocket = 'names the character device of --vhost cuse only; the name of the socket does not change';
  return [
    ...(index === undefined ? [] : [`${spell(index)}: ${sameSocket}`]),
    ...(number === undefined ? [] : [`${spell(number)}: numbers the character device of --vhost cuse only`]),
  ];
}
