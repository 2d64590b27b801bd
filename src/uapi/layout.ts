/**
 * Byte layouts of C structs, declared once: offsets and sizes are derived from the field types.
 * Pure data; reading and writing is done where the bytes are.
 */

const SIZES = { u8: 1, u16: 2, u32: 4, s32: 4, u64: 8 } as const;

/** A scalar type, or `[type, count]` for an array of it. */
export type FieldType = keyof typeof SIZES | readonly [keyof typeof SIZES, number];

/** Where the fields of a C struct lie. */
export interface Layout<F extends string> {
  /** the struct's name in C */
  readonly name: string;
  /** sizeof, bytes */
  readonly size: number;
  /** offsetof, bytes, by field */
  readonly off: { readonly [K in F]: number };
}

function build<F extends string>(name: string, fields: Record<F, FieldType>, packed: boolean): Layout<F> {
  const off = {} as Record<F, number>;
  let at = 0;
  let widest = 1;
  for (const field of Object.keys(fields) as F[]) {
    const type = fields[field];
    const [scalar, count] = typeof type === 'string' ? [type, 1] : type;
    const align = packed ? 1 : SIZES[scalar];
    widest = Math.max(widest, align);
    at = Math.ceil(at / align) * align;
    off[field] = at;
    at += SIZES[scalar] * count;
  }
  return { name, size: Math.ceil(at / widest) * widest, off };
}

/** A struct with the natural alignment of the x86-64 and arm64 C ABIs. */
export function layout<F extends string>(name: string, fields: Record<F, FieldType>): Layout<F> {
  return build(name, fields, false);
}

/** A struct declared `__attribute__((packed))`. */
export function packedLayout<F extends string>(name: string, fields: Record<F, FieldType>): Layout<F> {
  return build(name, fields, true);
}
