/*
 * What the machine allows: the switch's own algorithm as a minimal C program, for the benchmark and nothing else. It listens on
 * sockets with a vhost-user front end each, polls all split rings on one thread, and copies each frame once, from guest to guest, in the same
 * stages over bursts of 32: take descriptors; look up addresses; reserve receive descriptors; copy; publish.
 *
 * It trusts its front ends: one descriptor a frame, addresses are not checked again and again, no statistics, no offloads.
 *
 *   switch CORE SOCKET...
 */
#define _GNU_SOURCE
#include <errno.h>
#include <immintrin.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BURST = 32, MAX_PORTS = 8, MAX_REGIONS = 8, TABLE = 8192, HEADER = 12 };
enum { RX, TX };

/* vhost-user: QEMU docs/interop/vhost-user.rst */
enum {
  GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, RESET_OWNER = 4, SET_MEM_TABLE = 5, SET_VRING_NUM = 8, SET_VRING_ADDR = 9,
  SET_VRING_BASE = 10, GET_VRING_BASE = 11, SET_VRING_KICK = 12, SET_VRING_CALL = 13, SET_VRING_ERR = 14,
  GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16, SET_VRING_ENABLE = 18,
};
#define FEATURES (1ull << 32 | 1ull << 30 | 1ull << 29 | 1ull << 28 | 1ull << 15)
#define EVENT_IDX (1ull << 29)

struct message {
  uint32_t request, flags, size;
  union {
    uint64_t u64;
    struct { uint32_t index, num; } state;
    struct { uint32_t index, flags; uint64_t desc, used, avail, log; } addr;
    struct {
      uint32_t count, padding;
      struct { uint64_t guest, size, user, offset; } regions[MAX_REGIONS];
    } memory;
  };
} __attribute__((packed));

/* VIRTIO 1.2 section 2.7 */
struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct avail { uint16_t flags; _Atomic uint16_t idx; uint16_t ring[]; };
struct used_elem { uint32_t id, len; };
struct used { uint16_t flags; _Atomic uint16_t idx; struct used_elem ring[]; };

struct ring {
  struct desc *desc;
  struct avail *avail;
  struct used *used;
  uint16_t num, last;
  int call, enabled, on;
};
struct region { uint64_t guest, user, size; uint8_t *at; };
struct port {
  int fd;
  uint64_t features;
  struct ring rings[2];
  struct region regions[MAX_REGIONS];
  int n_regions;
};

static struct port ports[MAX_PORTS];
static int n_ports, core;
/* the table of addresses: a word with the address in the low 48 bits, and the port above */
static uint64_t table[TABLE];
/* control asks the polling thread to stand still while it changes ports */
static atomic_int asked, stands;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static inline uint8_t *at_guest(const struct port *p, uint64_t addr) {
  for (int i = 0; i < p->n_regions; i++)
    if (addr - p->regions[i].guest < p->regions[i].size) return p->regions[i].at + (addr - p->regions[i].guest);
  return NULL;
}

static void *at_user(const struct port *p, uint64_t addr) {
  for (int i = 0; i < p->n_regions; i++)
    if (addr - p->regions[i].user < p->regions[i].size) return p->regions[i].at + (addr - p->regions[i].user);
  return NULL;
}

static inline uint64_t mac_at(const uint8_t *frame) {
  uint64_t word;
  memcpy(&word, frame, 8);
  return word & 0xffffffffffff;
}

static inline uint32_t slot_of(uint64_t mac) {
  return (uint32_t)((mac * 0x9e3779b97f4a7c15ull) >> 51) & (TABLE - 1);
}

static inline int look_up(uint64_t mac) {
  for (uint32_t i = slot_of(mac), k = 0; k < 8; k++, i = (i + 1) & (TABLE - 1))
    if ((table[i] & 0xffffffffffff) == mac) return (int)(table[i] >> 48) - 1;
  return -1;
}

static void learn(uint64_t mac, int port) {
  for (uint32_t i = slot_of(mac), k = 0; k < 8; k++, i = (i + 1) & (TABLE - 1))
    if (table[i] == 0 || (table[i] & 0xffffffffffff) == mac) {
      table[i] = mac | (uint64_t)(port + 1) << 48;
      return;
    }
}

static inline void copy(uint8_t *to, const uint8_t *from, uint32_t bytes) {
  uint32_t i = 0;
  for (; i + 32 <= bytes; i += 32)
    _mm256_storeu_si256((__m256i *)(to + i), _mm256_loadu_si256((const __m256i *)(from + i)));
  for (; i < bytes; i++) to[i] = from[i];
}

/* Makes `n` elements visible, and calls the driver if it asks for that. */
static inline void publish(struct port *p, struct ring *r, uint16_t n) {
  uint16_t before = atomic_load_explicit(&r->used->idx, memory_order_relaxed);
  uint16_t now = before + n;
  atomic_store_explicit(&r->used->idx, now, memory_order_release);
  atomic_thread_fence(memory_order_seq_cst);
  int wanted;
  if (p->features & EVENT_IDX) {
    uint16_t event = *(volatile uint16_t *)&r->avail->ring[r->num];
    wanted = (uint16_t)(now - event - 1) < (uint16_t)(now - before);
  } else {
    wanted = !(*(volatile uint16_t *)&r->avail->flags & 1);
  }
  if (wanted && r->call >= 0) {
    uint64_t one = 1;
    if (write(r->call, &one, 8) != 8 && errno != EAGAIN) fail("call");
  }
}

/* It polls. By the event index it asks for a kick half a lap of the index from now, again and again. */
static inline void no_kicks(struct ring *r) {
  r->used->flags = 1;
  uint16_t event = r->last + 0x8000;
  memcpy(&r->used->ring[r->num], &event, 2);
}

static void switch_burst(int from) {
  struct port *p = &ports[from];
  struct ring *tx = &p->rings[TX];
  uint16_t mask = tx->num - 1;
  uint16_t n = atomic_load_explicit(&tx->avail->idx, memory_order_acquire) - tx->last;
  if (n == 0) return;
  if (n > BURST) n = BURST;
  uint16_t heads[BURST];
  uint8_t *frames[BURST];
  uint32_t lens[BURST];
  int dest[BURST];
  for (int i = 0; i < n; i++) {
    heads[i] = tx->avail->ring[(tx->last + i) & mask];
    const struct desc *d = &tx->desc[heads[i] & mask];
    frames[i] = at_guest(p, d->addr) + HEADER;
    lens[i] = d->len - HEADER;
    __builtin_prefetch(frames[i]);
  }
  for (int i = 0; i < n; i++) {
    uint64_t source = mac_at(frames[i] + 6);
    if (look_up(source) != from) learn(source, from);
    dest[i] = look_up(mac_at(frames[i]));
  }
  for (int to = 0; to < n_ports; to++) {
    if (to == from || !ports[to].rings[RX].on) continue;
    struct ring *rx = &ports[to].rings[RX];
    uint16_t rx_mask = rx->num - 1, got = 0, used = atomic_load_explicit(&rx->used->idx, memory_order_relaxed);
    uint16_t room = atomic_load_explicit(&rx->avail->idx, memory_order_acquire) - rx->last;
    uint8_t *places[BURST];
    int list[BURST];
    for (int i = 0; i < n; i++)
      if (got < room && (dest[i] == to || dest[i] < 0)) list[got++] = i;
    for (int k = 0; k < got; k++) {
      uint16_t head = rx->avail->ring[(rx->last + k) & rx_mask];
      const struct desc *d = &rx->desc[head & rx_mask];
      if (d->len < HEADER + lens[list[k]]) exit(2);
      places[k] = at_guest(&ports[to], d->addr);
      rx->used->ring[(used + k) & rx_mask] = (struct used_elem){head, HEADER + lens[list[k]]};
    }
    for (int k = 0; k < got; k++) {
      static const uint8_t header[HEADER] = {[10] = 1};
      memcpy(places[k], header, HEADER);
      copy(places[k] + HEADER, frames[list[k]], lens[list[k]]);
    }
    rx->last += got;
    if (got > 0) publish(&ports[to], rx, got);
  }
  uint16_t used = atomic_load_explicit(&tx->used->idx, memory_order_relaxed);
  for (int i = 0; i < n; i++) tx->used->ring[(used + i) & mask] = (struct used_elem){heads[i], 0};
  tx->last += n;
  no_kicks(tx);
  publish(p, tx, n);
}

static void *poll_rings(void *unused) {
  (void)unused;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(core, &cpus);
  if (sched_setaffinity(0, sizeof cpus, &cpus) != 0) fail("sched_setaffinity");
  for (;;) {
    if (atomic_load_explicit(&asked, memory_order_relaxed)) {
      atomic_store(&stands, 1);
      while (atomic_load(&asked)) usleep(50);
      atomic_store(&stands, 0);
    }
    for (int i = 0; i < n_ports; i++)
      if (ports[i].rings[TX].on) switch_burst(i);
  }
  return NULL;
}

static void hold(void) {
  atomic_store(&asked, 1);
  while (!atomic_load(&stands)) usleep(50);
}

static void let_go(void) {
  atomic_store(&asked, 0);
  while (atomic_load(&stands)) usleep(50);
}

static void map_memory(struct port *p, const struct message *m, const int *fds, int n_fds) {
  for (int i = 0; i < p->n_regions; i++) munmap(p->regions[i].at, p->regions[i].size);
  p->n_regions = 0;
  for (uint32_t i = 0; i < m->memory.count && (int)i < n_fds && i < MAX_REGIONS; i++) {
    uint64_t size = m->memory.regions[i].size, offset = m->memory.regions[i].offset;
    uint8_t *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fds[i], (off_t)offset);
    if (at == MAP_FAILED) fail("mmap");
    close(fds[i]);
    p->regions[p->n_regions++] =
        (struct region){.guest = m->memory.regions[i].guest, .user = m->memory.regions[i].user, .size = size, .at = at};
  }
}

static void end_port(struct port *p) {
  hold();
  for (int i = RX; i <= TX; i++) p->rings[i] = (struct ring){.call = -1};
  memset(table, 0, sizeof table);
  map_memory(p, &(struct message){0}, NULL, 0);
  let_go();
  close(p->fd);
  p->fd = -1;
}

static void answer(const struct port *p, struct message *m, uint32_t size) {
  m->flags = 1 | 1 << 2;
  m->size = size;
  if (write(p->fd, m, 12 + size) != (ssize_t)(12 + size)) fail("answer");
}

/* Carries out one message. Returns 0 when the front end has gone. */
static int serve(struct port *p) {
  struct message m = {0};
  char room[CMSG_SPACE(sizeof(int) * MAX_REGIONS)];
  struct iovec iov = {&m, 12};
  struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
  if (recvmsg(p->fd, &header, MSG_WAITALL) != 12) return 0;
  if (m.size > sizeof m - 12 || (m.size > 0 && recv(p->fd, (char *)&m + 12, m.size, MSG_WAITALL) != (ssize_t)m.size)) return 0;
  int fds[MAX_REGIONS], n_fds = 0;
  struct cmsghdr *c = CMSG_FIRSTHDR(&header);
  if (c != NULL && c->cmsg_type == SCM_RIGHTS) {
    n_fds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(fds, CMSG_DATA(c), sizeof(int) * (size_t)n_fds);
  }
  struct ring *r = &p->rings[m.state.index & 1];
  hold();
  switch (m.request) {
    case GET_FEATURES: m.u64 = FEATURES; answer(p, &m, 8); break;
    case GET_PROTOCOL_FEATURES: m.u64 = 0; answer(p, &m, 8); break;
    case SET_FEATURES: p->features = m.u64; break;
    case SET_MEM_TABLE: map_memory(p, &m, fds, n_fds); break;
    case SET_VRING_NUM: r->num = (uint16_t)m.state.num; break;
    case SET_VRING_BASE: r->last = (uint16_t)m.state.num; break;
    case SET_VRING_ADDR:
      r->desc = at_user(p, m.addr.desc);
      r->avail = at_user(p, m.addr.avail);
      r->used = at_user(p, m.addr.used);
      break;
    case SET_VRING_CALL: r->call = n_fds > 0 ? fds[0] : -1; break;
    case SET_VRING_ENABLE: r->enabled = (int)m.state.num; break;
    case SET_VRING_KICK: if (n_fds > 0) close(fds[0]); break;
    case SET_VRING_ERR: if (n_fds > 0) close(fds[0]); break;
    case GET_VRING_BASE:
      r->desc = NULL;
      m.state.num = r->last;
      answer(p, &m, 8);
      break;
    case SET_OWNER: case RESET_OWNER: case SET_PROTOCOL_FEATURES: break;
    default: let_go(); return 0;
  }
  r->on = r->enabled && r->desc && r->avail && r->used;
  if (r->on) no_kicks(r);
  let_go();
  return 1;
}

int main(int argc, char **argv) {
  if (argc < 3 || argc - 2 > MAX_PORTS) {
    fprintf(stderr, "usage: switch CORE SOCKET...\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  core = atoi(argv[1]);
  n_ports = argc - 2;
  int listeners[MAX_PORTS];
  for (int i = 0; i < n_ports; i++) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    if (strlen(argv[2 + i]) >= sizeof name.sun_path) fail(argv[2 + i]);
    strcpy(name.sun_path, argv[2 + i]);
    unlink(name.sun_path);
    listeners[i] = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listeners[i], (struct sockaddr *)&name, sizeof name) != 0 || listen(listeners[i], 1) != 0) fail(argv[2 + i]);
    ports[i].fd = ports[i].rings[RX].call = ports[i].rings[TX].call = -1;
  }
  pthread_t thread;
  if (pthread_create(&thread, NULL, poll_rings, NULL) != 0) fail("pthread_create");
  for (;;) {
    struct pollfd all[2 * MAX_PORTS];
    for (int i = 0; i < n_ports; i++) {
      all[2 * i] = (struct pollfd){.fd = ports[i].fd < 0 ? listeners[i] : -1, .events = POLLIN};
      all[2 * i + 1] = (struct pollfd){.fd = ports[i].fd, .events = POLLIN};
    }
    if (poll(all, 2 * (nfds_t)n_ports, -1) < 0 && errno != EINTR) fail("poll");
    for (int i = 0; i < n_ports; i++) {
      if (all[2 * i].revents) ports[i].fd = accept(listeners[i], NULL, NULL);
      if (all[2 * i + 1].revents && !serve(&ports[i])) end_port(&ports[i]);
    }
  }
}
