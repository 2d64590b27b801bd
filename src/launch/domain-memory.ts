/**
 * The memory of a libvirt domain, shared with the switch: a memfd where nothing else is said, and no part of it private.
 * Hugepages stay; QEMU then takes the memfd of them.
 */
import { elementsOf, type XmlElement, type XmlText } from './xml-text.ts';

/** Sources of memory that another process can map. */
const SHAREABLE_SOURCES = ['memfd', 'file'];
/** Elements behind which <memoryBacking> has its usual place. */
const BEFORE_BACKING = ['name', 'uuid', 'title', 'description', 'metadata', 'maxMemory', 'memory', 'currentMemory'];

/** Has the domain's memory shared. @returns what was changed, each in a line for people */
export function shareMemory(text: XmlText): string[] {
  const { root } = text;
  const [backing] = elementsOf(root, 'memoryBacking');
  const changes = backing === undefined ? addBacking(text) : mergeBacking(text, backing);
  for (const cell of cellsOf(root)) {
    if (cell.attributes.memAccess !== 'private') continue;
    text.setAttributes(cell, { memAccess: 'shared' });
    changes.push(`NUMA cell ${cell.attributes.id ?? ''}: memAccess='private' became 'shared'`);
  }
  for (const device of elementsOf(root, 'devices').flatMap((devices) => elementsOf(devices, 'memory'))) {
    if (device.attributes.access !== 'private') continue;
    text.setAttributes(device, { access: 'shared' });
    const file = device.attributes.model === 'nvdimm' ? '; what the guest writes now reaches its file' : '';
    changes.push(`device '${device.attributes.model}': access='private' became 'shared'${file}`);
  }
  return changes;
}

function cellsOf(root: XmlElement): XmlElement[] {
  const numa = elementsOf(root, 'cpu').flatMap((cpu) => elementsOf(cpu, 'numa'));
  return numa.flatMap((element) => elementsOf(element, 'cell'));
}

function addBacking(text: XmlText): string[] {
  const children = elementsOf(text.root);
  const place = children.findLast(({ name }) => BEFORE_BACKING.includes(name)) ?? children[0];
  const gap = text.gapInside(text.root);
  text.insertAfter(place, text.write('memoryBacking', {}, [memfd(text), shared(text)], gap));
  return ['a memfd, shared with the switch'];
}

function mergeBacking(text: XmlText, backing: XmlElement): string[] {
  const changes: string[] = [];
  const [source] = elementsOf(backing, 'source');
  const [access] = elementsOf(backing, 'access');
  const missing: string[] = [];
  if (source === undefined) {
    missing.push(memfd(text));
    changes.push(elementsOf(backing, 'hugepages').length > 0 ? 'a memfd, of its hugepages' : 'a memfd');
  } else if (!SHAREABLE_SOURCES.includes(source.attributes.type)) {
    text.setAttributes(source, { type: 'memfd' });
    changes.push(`source '${source.attributes.type}' became 'memfd': nobody can share it otherwise`);
  }
  if (access === undefined) {
    missing.push(shared(text));
    changes.push('shared with the switch');
  } else if (access.attributes.mode !== 'shared') {
    text.setAttributes(access, { mode: 'shared' });
    changes.push(`access '${access.attributes.mode}' became 'shared'`);
  }
  if (missing.length > 0) text.prepend(backing, missing);
  return changes;
}

const memfd = (text: XmlText) => text.write('source', { type: 'memfd' }, [], '');
const shared = (text: XmlText) => text.write('access', { mode: 'shared' }, [], '');
