/**
 * AF_XDP: sockets that share a piece of memory, the UMEM, and rings of frames in it with the kernel.
 * @see linux/if_xdp.h, linux/if_link.h; Linux Documentation/networking/af_xdp.rst
 */
import { layout } from './layout.ts';

export const AF_XDP = 44;
export const SOL_XDP = 283;

/** Socket options. */
export const XDP_MMAP_OFFSETS = 1;
export const XDP_RX_RING = 2;
export const XDP_TX_RING = 3;
export const XDP_UMEM_REG = 4;
export const XDP_UMEM_FILL_RING = 5;
export const XDP_UMEM_COMPLETION_RING = 6;
export const XDP_STATISTICS = 7;
export const XDP_OPTIONS = 8;

/** Where mmap(2) finds a socket's rings. */
export const XDP_PGOFF_RX_RING = 0;
export const XDP_PGOFF_TX_RING = 0x80000000;
export const XDP_UMEM_PGOFF_FILL_RING = 0x100000000;
export const XDP_UMEM_PGOFF_COMPLETION_RING = 0x180000000;

/** In `sxdp_flags`. */
export const XDP_SHARED_UMEM = 1;
export const XDP_COPY = 2;
export const XDP_ZEROCOPY = 4;
export const XDP_USE_NEED_WAKEUP = 8;
/** A frame may lie in several chunks: XDP_PKT_CONTD. */
export const XDP_USE_SG = 16;

/** In a descriptor's options: the frame goes on in the next one. */
export const XDP_PKT_CONTD = 1;

/** In a ring's flags: the kernel must be told of what is new in it. */
export const XDP_RING_NEED_WAKEUP = 1;

/** In `xdp_options.flags` */
export const XDP_OPTIONS_ZEROCOPY = 1;

/** How a program is attached to an interface: by the kernel before its stack, or by the driver. */
export const XDP_FLAGS_SKB_MODE = 2;
export const XDP_FLAGS_DRV_MODE = 4;

/** What the kernel keeps free in front of a frame that it receives, bytes. */
export const XDP_PACKET_HEADROOM = 256;

export const XDP_UMEM_REG_ARG = layout('xdp_umem_reg', {
  addr: 'u64',
  len: 'u64',
  chunk_size: 'u32',
  headroom: 'u32',
  flags: 'u32',
});

export const SOCKADDR_XDP = layout('sockaddr_xdp', {
  sxdp_family: 'u16',
  sxdp_flags: 'u16',
  sxdp_ifindex: 'u32',
  sxdp_queue_id: 'u32',
  sxdp_shared_umem_fd: 'u32',
});

/** Where the parts of a ring lie in its mapping; `desc` is the first element, `flags` the ring's. */
export const XDP_RING_OFFSET = layout('xdp_ring_offset', {
  producer: 'u64',
  consumer: 'u64',
  desc: 'u64',
  flags: 'u64',
});

/** Four struct xdp_ring_offset: each its first member's offset. */
export const XDP_MMAP_OFFSETS_ARG = layout('xdp_mmap_offsets', {
  rx: ['u64', 4],
  tx: ['u64', 4],
  fr: ['u64', 4],
  cr: ['u64', 4],
});

/** An element of the RX and TX rings; those of the other two are addresses. */
export const XDP_DESC = layout('xdp_desc', { addr: 'u64', len: 'u32', options: 'u32' });

export const XDP_STATISTICS_ARG = layout('xdp_statistics', {
  rx_dropped: 'u64',
  rx_invalid_descs: 'u64',
  tx_invalid_descs: 'u64',
  rx_ring_full: 'u64',
  rx_fill_ring_empty_descs: 'u64',
  tx_ring_empty_descs: 'u64',
});
