/**
 * Where a worker's file is: beside the module that starts it, .ts in a checkout and .js in the published package.
 */

/** `name` without its suffix, relative to the module whose `import.meta.url` is `base`. */
export function workerUrl(base: string, name: string): URL {
  return new URL(name + (base.endsWith('.ts') ? '.ts' : '.js'), base);
}
