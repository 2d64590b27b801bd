/**
 * A libvirt domain as it has to be for the switch: its virtio interfaces become vhost-user interfaces at the switch's socket, and the
 * guest's memory is shared. Everything else keeps every byte.
 *
 * @see https://libvirt.org/formatdomain.html
 */
import { SwitchError } from '../errors.ts';
import { type InterfaceWish, isVirtio, nameOf, rewriteInterface, TAKES_OVER } from './domain-interface.ts';
import { shareMemory } from './domain-memory.ts';
import { elementsOf, type XmlElement, XmlText } from './xml-text.ts';

/** Domain types that are QEMU. */
const QEMU_TYPES = ['kvm', 'qemu', 'hvf', 'kqemu'];

/** What the domain is to become. */
export interface DomainWish extends InterfaceWish {
  /** MAC addresses of the interfaces to rewrite. Default: all that are virtio. */
  readonly macs?: readonly string[] | undefined;
}

/** A domain that was rewritten. */
export interface RewrittenDomain {
  /** The same text as before where there was nothing to do. */
  readonly xml: string;
  /** What was changed, each in a line for people. */
  readonly changes: readonly string[];
  /** Interfaces that were left as they are, and why; each in a line for people. */
  readonly left: readonly string[];
}

/**
 * Rewrites a domain's XML, such as `virsh dumpxml --inactive` prints. Rewriting a result once more changes nothing.
 * Throws SwitchError: `BAD_XML` for what is no XML or has a document type, `BAD_DOMAIN` for what is no domain of QEMU's, or has no
 * interface that was asked for.
 */
export function rewriteDomain(xml: string, wish: DomainWish): RewrittenDomain {
  const text = new XmlText(xml);
  const { root } = text;
  checkDomain(root);
  const interfaces = elementsOf(root, 'devices').flatMap((devices) => elementsOf(devices, 'interface'));
  const { chosen, left } = chooseInterfaces(interfaces, wish);
  const changes = chosen.flatMap(({ element, name }, index) =>
    rewriteInterface(text, element, index, wish).map((change) => `interface ${name}: ${change}`),
  );
  const sharing = chosen.length > 0 || interfaces.some(({ attributes }) => attributes.type === 'vhostuser');
  if (sharing) changes.push(...shareMemory(text).map((change) => `memory: ${change}`));
  return { xml: text.toString(), changes: changes.map(oneLine), left: left.map(oneLine) };
}

/** A name in a domain may have line breaks. */
const oneLine = (text: string) => text.replace(/\p{Cc}/gu, ' ');

function checkDomain(root: XmlElement): void {
  if (root.name !== 'domain') {
    const problem = `the root is <${root.name}>, not <domain>; give what virsh dumpxml prints`;
    throw new SwitchError('BAD_DOMAIN', problem);
  }
  const { type } = root.attributes;
  if (!QEMU_TYPES.includes(type)) {
    const problem = `a domain of type ${type === undefined ? 'none' : `'${type}'`}: vhost-user takes QEMU, type kvm or qemu`;
    throw new SwitchError('BAD_DOMAIN', problem);
  }
}

/** The interfaces to rewrite, and why the others are not. */
function chooseInterfaces(interfaces: readonly XmlElement[], wish: DomainWish) {
  const macs = wish.macs?.map((mac) => mac.toLowerCase());
  const named = interfaces.map((element, index) => ({ element, name: nameOf(element, index) }));
  for (const mac of macs ?? []) {
    if (named.some(({ name }) => name === mac)) continue;
    const there = named.map(({ name }) => name).join(', ') || 'none';
    throw new SwitchError('BAD_DOMAIN', `no interface has the MAC address ${mac}; there is ${there}`);
  }
  const left: string[] = [];
  const chosen = named.filter(({ element, name }) => {
    const why = macs === undefined || macs.includes(name) ? obstacle(element) : 'not asked for';
    if (why !== undefined && macs?.includes(name) && element.attributes.type !== 'vhostuser')
      throw new SwitchError('BAD_DOMAIN', `interface ${name}: ${why}`);
    if (why !== undefined) left.push(`interface ${name}: left as it is: ${why}`);
    return why === undefined;
  });
  return { chosen, left };
}

/** Why an interface cannot or need not be rewritten. */
function obstacle(element: XmlElement): string | undefined {
  const { type } = element.attributes;
  if (type === 'vhostuser') return `it is vhostuser at ${elementsOf(element, 'source')[0]?.attributes.path} already`;
  if (!TAKES_OVER.includes(type)) return `it is of type '${type}', which is not the switch's to replace`;
  if (isVirtio(element)) return undefined;
  const model = elementsOf(element, 'model')[0]?.attributes.type;
  const which = model === undefined ? 'it has no model' : `its model is '${model}'`;
  return `${which}, and the switch takes virtio; to have it too, write <model type='virtio'/>`;
}
