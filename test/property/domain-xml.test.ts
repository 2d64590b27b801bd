/** Properties of rewriting libvirt domains, over domains that nobody would write. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { SwitchError } from '../../src/errors.ts';
import { rewriteDomain } from '../../src/launch/domain-xml.ts';
import { elementsOf, XmlText } from '../../src/launch/xml-text.ts';

const blank = fc.constantFrom('', '', '\n', '\n  ', '\r\n\t', ' ');
const quote = fc.constantFrom("'", '"');
const noise = fc.constantFrom(
  '',
  '',
  '<!-- <interface/> -->',
  '<?pi x?>',
  '<unknown><interface type="user"/></unknown>',
);
const choice = (...values: string[]) => fc.constantFrom(...values);

/** An empty element with some of these attributes, in either form. */
const element = (name: string, attributes: Record<string, fc.Arbitrary<string>>) =>
  fc.tuple(fc.record(attributes, { requiredKeys: [] }), quote, fc.boolean(), blank).map(([values, q, short, gap]) => {
    const tag = `<${name}${Object.entries(values)
      .map(([key, value]) => ` ${key}${gap}=${q}${value}${q}`)
      .join('')}${gap}`;
    return short ? `${tag}/>` : `${tag}></${name}>`;
  });

const child = fc.oneof(
  element('mac', { address: fc.constantFrom('52:54:00:00:00:01', 'BC:24:11:00:00:02') }),
  element('model', { type: choice('virtio', 'virtio', 'virtio-transitional', 'e1000') }),
  element('source', { bridge: choice('br0'), network: choice('a&amp;b'), dev: choice('eth0') }),
  element('driver', { name: choice('qemu', 'vhost'), queues: choice('1', '4', '200'), packed: choice('on') }),
  element('target', { dev: choice('vnet0') }),
  element('vlan', {}),
  element('alias', { name: choice('ua-1') }),
  noise,
);

/** Puts children into an element, each behind blanks. No two of them have the same name, noise excepted. */
const inside = (start: string, end: string, children: fc.Arbitrary<string>, maxLength = 8) =>
  fc
    .uniqueArray(fc.tuple(blank, children), { maxLength, selector: ([, text]) => /^<(\w+)/.exec(text)?.[1] ?? text })
    .map((parts) => `${start}${parts.flat().join('')}${end}`);

const networkInterface = fc
  .tuple(choice('user', 'bridge', 'network', 'ethernet', 'direct', 'vhostuser', 'hostdev'), quote)
  .chain(([type, q]) => inside(`<interface type=${q}${type}${q}>`, '</interface>', child));

const memoryBacking = inside(
  '<memoryBacking>',
  '</memoryBacking>',
  fc.oneof(
    element('source', { type: choice('anonymous', 'file', 'memfd') }),
    element('access', { mode: choice('private', 'shared') }),
    element('hugepages', {}),
    noise,
  ),
);

const domain = fc
  .tuple(
    fc.array(networkInterface, { maxLength: 4 }),
    memoryBacking,
    fc.array(noise, { maxLength: 3 }),
    blank,
    fc.boolean(),
  )
  .map(([interfaces, backing, noises, gap, backed]) => {
    const devices = `<devices>${interfaces.map((text) => gap + text).join('')}${gap}</devices>`;
    const parts = ['<name>x</name>', ...(backed ? [backing] : ['<memory>1</memory>']), ...noises, devices];
    return `<domain type='kvm'>${parts.map((part) => gap + part).join('')}${gap}</domain>`;
  });

const WISH = { sockets: ['/run/s'], queues: 2, offloads: false };

test('domain XML: rewriting twice is rewriting once, and what virtio interfaces there are end at the switch', () => {
  fc.assert(
    fc.property(domain, fc.boolean(), (xml, plain) => {
      const wish = plain ? { sockets: ['/run/s'] } : WISH;
      const once = rewriteDomain(xml, wish);
      const twice = rewriteDomain(once.xml, wish);
      assert.equal(twice.xml, once.xml);
      assert.deepEqual(twice.changes, []);
      const { root } = new XmlText(once.xml);
      const interfaces = elementsOf(root, 'devices').flatMap((devices) => elementsOf(devices, 'interface'));
      for (const element of interfaces) {
        const model = elementsOf(element, 'model')[0]?.attributes.type ?? '';
        if (!model.startsWith('virtio')) continue;
        assert.ok(['vhostuser', 'hostdev'].includes(element.attributes.type));
        const [source] = elementsOf(element, 'source');
        if (once.changes.length > 0 && source?.attributes.type === 'unix')
          assert.equal(source.attributes.path, '/run/s');
      }
      if (!interfaces.some(({ attributes }) => attributes.type === 'vhostuser')) return;
      const [backing] = elementsOf(root, 'memoryBacking');
      assert.equal(elementsOf(backing, 'access')[0].attributes.mode, 'shared');
      assert.match(elementsOf(backing, 'source')[0].attributes.type, /^(memfd|file)$/);
    }),
    { numRuns: 2000 },
  );
});

test('domain XML: a damaged text is rewritten or refused by name', () => {
  const xml = readFileSync(new URL('../unit/domains/proxmox-moved.xml', import.meta.url), 'utf8');
  const piece = fc.constantFrom(
    '<',
    '>',
    '/',
    '"',
    '&',
    '<!--',
    ']]>',
    '<![CDATA[',
    '<interface',
    '\0',
    '\ud800',
    '<?xml ?>',
    '',
  );
  const place = fc.nat(xml.length);
  fc.assert(
    fc.property(place, fc.nat(40), piece, (start, cut, text) => {
      const damaged = xml.slice(0, start) + text + xml.slice(start + cut);
      try {
        const { xml: result } = rewriteDomain(damaged, WISH);
        assert.equal(rewriteDomain(result, WISH).xml, result);
      } catch (error) {
        assert.ok(error instanceof SwitchError && /^BAD_(XML|DOMAIN)$/.test(error.code), String(error));
      }
    }),
    { numRuns: 2000 },
  );
});
