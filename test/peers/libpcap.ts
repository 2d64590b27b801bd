/**
 * libpcap, the library behind tcpdump and behind DPDK's own net_pcap, as a peer: reads capture files and writes them again. DPDK's
 * packages bring the library; no headers are needed.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Prints each frame as "seconds nanoseconds bytes-on-the-wire hex", and writes all to the second file if there is one. */
const SOURCE = `
#include <stdio.h>
#include <sys/time.h>
typedef struct pcap pcap_t;
typedef struct pcap_dumper pcap_dumper_t;
struct pcap_pkthdr { struct timeval ts; unsigned caplen; unsigned len; };
pcap_t *pcap_open_offline_with_tstamp_precision(const char *, unsigned, char *);
int pcap_next_ex(pcap_t *, struct pcap_pkthdr **, const unsigned char **);
char *pcap_geterr(pcap_t *);
int pcap_datalink(pcap_t *);
pcap_dumper_t *pcap_dump_open(pcap_t *, const char *);
void pcap_dump(unsigned char *, const struct pcap_pkthdr *, const unsigned char *);
void pcap_dump_close(pcap_dumper_t *);
int main(int argc, char **argv) {
  char error[256] = "";
  pcap_t *in = pcap_open_offline_with_tstamp_precision(argv[1], 1, error);
  if (!in) { fprintf(stderr, "%s\\n", error); return 1; }
  pcap_dumper_t *out = argc > 2 ? pcap_dump_open(in, argv[2]) : 0;
  if (argc > 2 && !out) { fprintf(stderr, "%s\\n", pcap_geterr(in)); return 1; }
  printf("link %d\\n", pcap_datalink(in));
  struct pcap_pkthdr *head;
  const unsigned char *data;
  int got;
  while ((got = pcap_next_ex(in, &head, &data)) == 1) {
    printf("%ld %ld %u ", (long)head->ts.tv_sec, (long)head->ts.tv_usec, head->len);
    for (unsigned i = 0; i < head->caplen; i++) printf("%02x", data[i]);
    printf("\\n");
    if (out) pcap_dump((unsigned char *)out, head, data);
  }
  if (out) pcap_dump_close(out);
  if (got != -2) { fprintf(stderr, "%s\\n", pcap_geterr(in)); return 1; }
  return 0;
}
`;

/** A frame as libpcap sees it. */
export interface PcapFrame {
  readonly hex: string;
  readonly ns: bigint;
  readonly wireLen: number;
}

/** Why libpcap cannot be asked here, or false. With CI=true it must be there. */
export function withoutLibpcap(): string | false {
  if (process.env.CI === 'true') return false;
  const tried = spawnSync('gcc', ['-shared', '-o', '/dev/null', '-l:libpcap.so.0.8'], { encoding: 'utf8' });
  if (tried.error !== undefined) return 'there is no gcc here to compile a program that uses libpcap';
  return tried.status === 0 ? false : 'libpcap.so.0.8 is not here: the package libpcap0.8';
}

export class Libpcap {
  readonly #program: string;

  /** Compiles the program in `dir`. */
  constructor(dir: string) {
    this.#program = join(dir, 'ask-libpcap');
    const source = join(dir, 'ask-libpcap.c');
    writeFileSync(source, SOURCE);
    execFileSync('gcc', ['-o', this.#program, source, '-l:libpcap.so.0.8'], { stdio: 'pipe' });
  }

  /** The frames of a file of Ethernet frames, written to file `to` by the way. Throws what libpcap says of a broken file. */
  read(path: string, to?: string): PcapFrame[] {
    const args = to === undefined ? [path] : [path, to];
    const run = spawnSync(this.#program, args, { encoding: 'utf8', maxBuffer: 2 ** 28 });
    if (run.status !== 0) throw new Error(run.stderr);
    const [link, ...lines] = run.stdout.trimEnd().split('\n');
    if (link !== 'link 1') throw new Error(link);
    return lines.map((line) => {
      const [sec, nsec, wireLen, hex] = line.split(' ');
      return { hex, ns: BigInt(sec) * 1_000_000_000n + BigInt(nsec), wireLen: Number(wireLen) };
    });
  }
}
