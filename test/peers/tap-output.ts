/** What Node's test runner says of tests that ran elsewhere: its reporter "tap". */

/** What became of one test. */
export interface TestOutcome {
  readonly name: string;
  readonly ok: boolean;
  /** what it says beside, such as the error */
  readonly details: string;
}

/** The outcomes of the tests at the top level, in order. */
export function testOutcomes(output: string): TestOutcome[] {
  const found = [...output.matchAll(/^(not ok|ok) \d+ - (.*)$/gm)];
  return found.map(({ 0: line, 1: verdict, 2: name, index }, i) => ({
    name,
    ok: verdict === 'ok',
    details: output.slice(index + line.length, found[i + 1]?.index),
  }));
}
