/**
 * An XML document that is edited as text: what is not edited keeps every byte. Document types are refused, and with them entities of
 * one's own. It knows nothing of what the document means.
 */
import { parseXml, XmlElement, XmlError, type XmlNode, XmlText as XmlTextNode } from '@rgrove/parse-xml';
import { SwitchError } from '../errors.ts';

export type { XmlElement } from '@rgrove/parse-xml';

/** Characters of a document, at most: libvirt's own domains have some thousands. */
const MAX_LENGTH = 1024 * 1024;
/** Indentation where the document shows none to go by. */
const INDENT = '  ';
/** A pair in a start tag that is known to be well-formed, behind the one before it: its name and its quote. */
const ATTRIBUTE = /\s+([^\s=]+)\s*=\s*(?:(")[^"]*"|(')[^']*')/gy;

/** Values of attributes by name; what is undefined is not there. */
export type Attributes = Readonly<Record<string, string | undefined>>;

interface Edit {
  readonly start: number;
  readonly end: number;
  readonly text: string;
}

/** One document, and the edits to it. Nodes are those of the document as it was read; no two edits may overlap. */
export class XmlText {
  readonly root: XmlElement;
  readonly #text: string;
  readonly #edits: Edit[] = [];
  /** Where children are among their siblings, for parents that have been asked about. */
  readonly #places = new Map<XmlElement, ReadonlyMap<XmlNode, number>>();
  /** What the document puts around values of attributes. */
  readonly #quote: string;

  /** Throws SwitchError `BAD_XML` for a text that is no XML document, is too long, or has a document type. */
  constructor(text: string) {
    this.#text = text;
    this.root = parse(text);
    this.#quote = /["']/.exec(text.slice(this.root.start))?.[0] ?? "'";
  }

  /** The line break and indentation before a node; empty when there is none. */
  gapBefore(node: XmlNode): string {
    const blank = this.#blankBefore(node);
    return blank === undefined ? '' : this.#text.slice(blank.start, blank.end);
  }

  /** The line break and indentation of an element's children: as they have it, else one step more than its own. */
  gapInside(element: XmlElement): string {
    const [child] = elementsOf(element);
    const own = lastLineBreak(this.gapBefore(element));
    if (child !== undefined) return lastLineBreak(this.gapBefore(child));
    return own === '' ? '' : own + this.#step;
  }

  /** What an element of these attributes and children looks like behind `gap`; each child is the text of an element. */
  write(name: string, attributes: Attributes, children: readonly string[], gap: string): string {
    const tag = `<${name}${this.#attributes(attributes)}`;
    if (children.length === 0) return `${tag}/>`;
    const inner = gap === '' ? '' : gap + this.#step;
    return `${tag}>${children.map((child) => inner + child).join('')}${gap}</${name}>`;
  }

  /** Puts a text in the place of an element. */
  replace(element: XmlElement, text: string): void {
    this.#edits.push({ start: element.start, end: element.end, text });
  }

  /** Changes attributes of an element, adds those that it lacks, and takes out those that are undefined. Everything else stays. */
  setAttributes(element: XmlElement, changes: Attributes): void {
    const { start } = element;
    const end = this.#startTagEnd(element);
    const given = this.#text.slice(start, end);
    const close = given.endsWith('/>') ? '/>' : '>';
    const name = `<${element.name}`;
    const pairs = given.slice(name.length, -close.length);
    const changed = pairs.replace(ATTRIBUTE, (pair, attribute: string, double?: string, single?: string) => {
      if (!Object.hasOwn(changes, attribute)) return pair;
      const quote = double ?? single ?? this.#quote;
      const value = changes[attribute];
      return value === undefined ? '' : pair.slice(0, pair.indexOf(quote)) + quote + escaped(value) + quote;
    });
    const kept = changed.trimEnd();
    const added = Object.entries(changes).filter(([attribute]) => element.attributes[attribute] === undefined);
    const text = name + kept + this.#attributes(Object.fromEntries(added)) + changed.slice(kept.length) + close;
    this.#edits.push({ start, end, text });
  }

  /** Takes an element out, and the blanks before it. */
  remove(element: XmlElement): void {
    const { start = element.start } = this.#blankBefore(element) ?? {};
    this.#edits.push({ start, end: element.end, text: '' });
  }

  /** Puts a text behind an element, on a line of its own where that one has its own. */
  insertAfter(element: XmlElement, text: string): void {
    const { end } = element;
    this.#edits.push({ start: end, end, text: lastLineBreak(this.gapBefore(element)) + text });
  }

  /** Puts the texts of elements in front of what is in an element. */
  prepend(element: XmlElement, texts: readonly string[]): void {
    const gap = this.gapInside(element);
    const [first] = element.children;
    if (first === undefined) {
      const close = `${lastLineBreak(this.gapBefore(element))}</${element.name}>`;
      const inside = texts.map((text) => gap + text).join('');
      this.replace(element, `<${element.name}${this.#attributes(element.attributes)}>${inside}${close}`);
    } else {
      this.#edits.push({ start: first.start, end: first.start, text: texts.map((text) => gap + text).join('') });
    }
  }

  /** The document with its edits. */
  toString(): string {
    // what is inserted at a place comes before what is cut from there
    const edits = this.#edits.toSorted((a, b) => a.start - b.start || a.end - b.end);
    let result = '';
    let done = 0;
    for (const { start, end, text } of edits) {
      result += this.#text.slice(done, start) + text;
      done = end;
    }
    return result + this.#text.slice(done);
  }

  /** The blanks between a node and the one before it. */
  #blankBefore(node: XmlNode): XmlNode | undefined {
    const parent = node.parent as XmlElement;
    let places = this.#places.get(parent);
    if (places === undefined) {
      places = new Map(parent.children.map((child, index) => [child, index]));
      this.#places.set(parent, places);
    }
    const before = parent.children[places.get(node)! - 1];
    return before instanceof XmlTextNode && before.text.trim() === '' ? before : undefined;
  }

  #attributes(attributes: Attributes): string {
    const pairs = Object.entries(attributes).filter((pair): pair is [string, string] => pair[1] !== undefined);
    return pairs.map(([name, value]) => ` ${name}=${this.#quote}${escaped(value)}${this.#quote}`).join('');
  }

  /** Behind the `>` or `/>` of an element's start tag. */
  #startTagEnd({ start, end, children: [first] }: XmlElement): number {
    if (first !== undefined) return first.start;
    const endTag = this.#text.lastIndexOf('</', end - 1);
    return endTag > start ? endTag : end;
  }

  /** What a level of the document is indented by: as its first one is. */
  get #step(): string {
    const [child] = elementsOf(this.root);
    const indent = child === undefined ? '' : lastLineBreak(this.gapBefore(child)).replace(/^\r?\n/, '');
    return indent === '' ? INDENT : indent;
  }
}

/** The child elements of an element, with this name if one is given. */
export function elementsOf(element: XmlElement, name?: string): XmlElement[] {
  return element.children.filter(
    (child): child is XmlElement => child instanceof XmlElement && (name === undefined || child.name === name),
  );
}

function parse(text: string): XmlElement {
  if (text.length > MAX_LENGTH)
    throw new SwitchError(
      'BAD_XML',
      `${text.length} characters are too many for an XML document; ${MAX_LENGTH} at most`,
    );
  const document = parseAt(text);
  const declared = document.children.find((node) => node.type === 'xmldecl') as { encoding?: string } | undefined;
  if (document.children.some(({ type }) => type === 'doctype'))
    throw new SwitchError('BAD_XML', 'has a document type (<!DOCTYPE); take it out, libvirt needs none');
  if (declared?.encoding !== undefined && !/^(utf-?8|us-ascii|ascii)$/i.test(declared.encoding))
    throw new SwitchError('BAD_XML', `is in ${declared.encoding}; convert it to UTF-8`);
  return document.root as XmlElement;
}

function parseAt(text: string) {
  const options = {
    includeOffsets: true,
    preserveComments: true,
    preserveCdata: true,
    preserveDocumentType: true,
    preserveXmlDeclaration: true,
  };
  try {
    // The parser copies a text once for each carriage return that it normalizes. A blank is as good: only places are taken from here.
    return parseXml(text.replaceAll('\r', ' '), options);
  } catch (error) {
    // it calls itself for each level
    if (error instanceof RangeError) throw new SwitchError('BAD_XML', 'has elements nested too deeply');
    if (!(error instanceof XmlError)) throw error;
    const [problem] = error.message.split(' (line ');
    throw new SwitchError('BAD_XML', `line ${error.line}, column ${error.column}: ${problem}`);
  }
}

/** From the last line break on: empty lines before an element are not repeated. */
function lastLineBreak(gap: string): string {
  const at = gap.lastIndexOf('\n');
  if (at < 0) return '';
  return gap.slice(gap[at - 1] === '\r' ? at - 1 : at);
}

const ESCAPES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  "'": '&apos;',
  '"': '&quot;',
};

function escaped(value: string): string {
  return value
    .replace(/[&<>'"]/g, (character) => ESCAPES[character])
    .replace(/[\t\n\r]/g, (blank) => `&#${blank.charCodeAt(0)};`);
}
