/** A libvirt domain becomes one for the switch. The domains in domains/ are as the programs that they are named after write them. */
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { describe, test } from 'node:test';
import { SwitchError } from '../../src/errors.ts';
import { type DomainWish, rewriteDomain } from '../../src/launch/domain-xml.ts';

const FOLDER = new URL('domains/', import.meta.url);
const NAMES = globSync('*.xml', { cwd: FOLDER.pathname }).map((file) => basename(file, '.xml'));
const SOCKET = '/run/vhost-switch.sock';

const read = (file: string) => readFileSync(new URL(file, FOLDER), 'utf8');
const rewrite = (xml: string, wish: Partial<DomainWish> = {}) => rewriteDomain(xml, { sockets: [SOCKET], ...wish });

/** The smallest domain with these interfaces. */
const domain = (interfaces: string, more = '') =>
  `<domain type='kvm'><name>x</name>${more}<devices>${interfaces}</devices></domain>`;
const VIRTIO = "<model type='virtio'/>";

function refused(xml: string, code: string, message: RegExp, wish: Partial<DomainWish> = {}): void {
  const hasCode = (error: unknown) => error instanceof SwitchError && error.code === code;
  assert.throws(
    () => rewrite(xml, wish),
    (error: Error) => hasCode(error) && message.test(error.message),
  );
}

describe('domains as they are found', () => {
  test('there are enough of them', () => assert.ok(NAMES.length >= 16));
  for (const name of NAMES) {
    test(`${name} is rewritten as its golden file says, and once is enough`, () => {
      const { xml, changes, left } = rewrite(read(`${name}.xml`));
      assert.equal([xml, 'CHANGES', ...changes, 'LEFT', ...left, ''].join('\n'), read(`${name}.golden`));
      const again = rewrite(xml);
      assert.equal(again.xml, xml);
      assert.deepEqual(again.changes, []);
    });
  }
});

describe('what is asked for', () => {
  const two = read('proxmox-moved.xml');

  test('only the interfaces with these MAC addresses, in capitals or not', () => {
    const { xml, left } = rewrite(two, { macs: ['bc:24:11:5E:0f:02'] });
    assert.match(xml, /<interface type="ethernet">\s+<mac address="BC:24:11:5E:0F:01"\/>\s+<script/);
    assert.match(xml, /<interface type="vhostuser">\s+<mac address="BC:24:11:5E:0F:02"\/>/);
    assert.equal(left[0], 'interface bc:24:11:5e:0f:01: left as it is: not asked for');
  });

  test('an interface that is not there, or cannot be, is refused', () => {
    refused(two, 'BAD_DOMAIN', /no interface has the MAC address 52:54:00:00:00:09; there is bc:24/, {
      macs: ['52:54:00:00:00:09'],
    });
    refused(two, 'BAD_DOMAIN', /^interface bc:24:11:5e:0f:03: its model is 'rtl8139'/, { macs: ['bc:24:11:5e:0f:03'] });
    refused(domain(''), 'BAD_DOMAIN', /there is none$/, { macs: ['52:54:00:00:00:09'] });
  });

  test('a socket for each, the last one for all others; and no reconnecting', () => {
    const given = domain(`<interface type='user'>${VIRTIO}</interface>`.repeat(3));
    const paths = (xml: string) => [...xml.matchAll(/path='([^']*)'/g)].map(([, path]) => path);
    assert.deepEqual(paths(rewrite(given, { sockets: ['/a', '/b'] }).xml), ['/a', '/b', '/b']);
    assert.match(rewrite(given, { reconnect: 0 }).xml, /<source type='unix' path='[^']*' mode='client'\/>/);
    assert.match(rewrite(given, { reconnect: 5 }).xml, /<reconnect enabled='yes' timeout='5'\/>/);
  });

  test('queues and no offloads: what is in <driver> besides stays', () => {
    const given = `<interface type='user'>${VIRTIO}<driver packed='on'><host mrg_rxbuf='on' csum='on'/></driver></interface>`;
    const { xml, changes } = rewrite(domain(given), { queues: 4, offloads: false });
    const host = "<host mrg_rxbuf='on' csum='off' gso='off' tso4='off' tso6='off' ecn='off' ufo='off'/>";
    const guest = "<guest csum='off' tso4='off' tso6='off' ecn='off' ufo='off'/>";
    assert.ok(xml.includes(`<driver packed='on' queues='4'>${host}${guest}</driver>`), xml);
    assert.ok(changes.includes("interface number 1: <driver queues='4'>"));
    assert.ok(changes.includes('interface number 1: the offloads turned off'));
  });

  test('offloads that are off already are left alone', () => {
    const off = rewrite(domain(`<interface type='user'>${VIRTIO}</interface>`), { offloads: false }).xml;
    const { xml, changes } = rewrite(off.replace("'vhostuser'", "'user'"), { offloads: false });
    assert.equal(xml, off);
    assert.ok(!changes.some((change) => change.includes('offloads')));
  });
});

describe('values stay values', () => {
  test('a path with quotes and ampersands, and attributes whose text looks like others', () => {
    const given = `<interface note='type="x" &amp; managed' type = "user"\n managed="no">${VIRTIO}</interface>`;
    const { xml } = rewrite(domain(given), { sockets: [`/run/a&b'c"<d>`] });
    assert.ok(xml.includes(`<interface note='type="x" &amp; managed' type = "vhostuser">`), xml);
    assert.ok(xml.includes("path='/run/a&amp;b&apos;c&quot;&lt;d&gt;'"), xml);
    assert.equal(rewrite(xml).xml, xml);
  });

  test('a name with a line break stays in its line of what was changed', () => {
    const { changes } = rewrite(domain(`<interface type='bridge'>${VIRTIO}<source bridge='a&#10;b'/></interface>`));
    assert.match(changes[0], /^interface number 1: type 'bridge' of bridge='a b' became/);
  });

  test('interfaces in comments, CDATA and metadata are none', () => {
    const fake = `<interface type='user'>${VIRTIO}</interface>`;
    const more = `<!-- ${fake} --><metadata><a:b xmlns:a='urn:a'>${fake}<![CDATA[${fake}]]></a:b></metadata>`;
    const xml = domain('', more);
    assert.deepEqual(rewrite(xml), { xml, changes: [], left: [] });
  });

  test('characters of two UTF-16 units before an interface do not shift it', () => {
    const given = domain(
      `<interface type='user'><mac address='52:54:00:00:00:01'/>${VIRTIO}</interface>`,
      '<title>🐧🐧</title>',
    );
    assert.match(
      rewrite(given).xml,
      /<title>🐧🐧<\/title>.*<interface type='vhostuser'><mac address='52:54:00:00:00:01'\/><source /,
    );
  });
});

describe('VLANs', () => {
  const vlan = (inside: string) =>
    rewrite(domain(`<interface type='bridge'>${VIRTIO}${inside}</interface>`)).changes.find((line) =>
      /vlan/.test(line),
    );
  test('what is dropped is said in the words of --socket-file', () => {
    assert.match(vlan("<vlan><tag id='42'/></vlan>")!, /PATH,vlan=42$/);
    assert.match(vlan("<vlan trunk='yes'><tag id='42'/></vlan>")!, /PATH,trunk=42$/);
    assert.match(vlan("<vlan><tag id='42'/><tag id='7' nativeMode='untagged'/></vlan>")!, /PATH,trunk=42\+7,native=7$/);
  });
});

describe('what is refused', () => {
  test('what is no domain of QEMU', () => {
    refused('<network><name>default</name></network>', 'BAD_DOMAIN', /the root is <network>.*virsh dumpxml/);
    refused("<domain type='xen'><name>x</name></domain>", 'BAD_DOMAIN', /of type 'xen'.*kvm or qemu/);
    refused('<domain><name>x</name></domain>', 'BAD_DOMAIN', /of type none/);
  });

  test('document types and entities', () => {
    const body = "<domain type='kvm'><name>x</name></domain>";
    refused(`<!DOCTYPE domain>${body}`, 'BAD_XML', /document type/);
    refused(`<!DOCTYPE domain [<!ENTITY e "x">]>${body.replace('x', '&e;')}`, 'BAD_XML', /line 1, column \d+: .*&e;/);
    refused(body.replace('x', '&nbsp;'), 'BAD_XML', /&nbsp;/);
  });

  test('broken texts, with the place', () => {
    refused('', 'BAD_XML', /line 1, column 1/);
    refused("<domain type='kvm'>\n<name>x</nam></domain>", 'BAD_XML', /line 2, column 8/);
    refused("<domain type='kvm' type='qemu'/>", 'BAD_XML', /Duplicate attribute/);
    refused('<?xml version="1.0" encoding="ISO-8859-1"?><domain/>', 'BAD_XML', /ISO-8859-1.*UTF-8/);
  });

  test('too long, and nested too deeply', () => {
    refused(' '.repeat(1024 * 1024 + 1), 'BAD_XML', /1048577 characters/);
    refused('<a>'.repeat(300_000), 'BAD_XML', /nested too deeply/);
  });

  test('a text of carriage returns, or a tag of blanks, takes no longer than another', () => {
    const xml = domain('', `<title>${'\r'.repeat(1_000_000)}</title>`);
    assert.equal(rewrite(xml).xml, xml);
    const gap = ' '.repeat(500_000);
    const given = domain(`<interface${gap}type='user'${gap}>${VIRTIO}</interface>`);
    assert.ok(rewrite(given).xml.includes(`<interface${gap}type='vhostuser'${gap}>`));
  });
});
