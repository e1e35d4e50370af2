/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the parser finds out about a packet, whichever hook saw it. */
#ifndef LASTHOP_FRAME_H
#define LASTHOP_FRAME_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "abi.h"

#define READ_ONCE(x)	 (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))
/* Orders what the compiler emits; x86 and the arm64 JIT's acquire/release are not needed where a
 * reader checks a generation before and after. */
#define barrier() asm volatile("" ::: "memory")

/* What a packet may do to the table. */
enum packet_kind {
	PACKET_DATA,	 /* a request or reply like any other */
	PACKET_OPEN,	 /* TCP SYN, SCTP INIT, echo request */
	PACKET_ANSWER,	 /* SYN-ACK, INIT-ACK, echo reply: never creates from an uplink */
	PACKET_ABORT,	 /* RST, ABORT */
	PACKET_ERROR,	 /* ICMP error; the key is that of the quoted packet */
	PACKET_FRAGMENT, /* not the first of its datagram */
};

/* Results of a parser beside enum reason, which is >= 0. */
#define PARSED		 (-1)
#define PARSE_SHORT	 (-2) /* needs more bytes than are linear */
#define PARSE_EXTENSIONS (-3) /* IPv6 extension headers follow */
#define PARSE_QUOTE	 (-4) /* an ICMP error: its quote follows */
#define PARSE_LABELS	 (-5) /* MPLS labels follow */

struct packet {
	/* Filled by whole words: a lookup that reads wider than was written waits for the stores.
	 */
	union {
		struct flow4_key key4;
		struct flow6_key key6;
		__u64 key_words[5];
	};
	/* Where the parser is, and what the IP header said about what follows. */
	__u32 offset;
	__u32 payload_bytes;
	__u32 fragment_id;
	__u16 fragment_offset;
	__u8 more_fragments;
	__u8 proto;
	struct vlan_tag tags[2]; /* outer first; priority tags (VID 0) left out */
	__u8 destination[6];
	__u8 source[6];
	__u32 ifindex;
	__u32 length_bytes;
	__u32 seq;
	__u32 seq_end; /* what follows this segment */
	__u32 ack;
	__u32 now;   /* ticks */
	__u8 family; /* 4, 6, or 0 */
	__u8 kind;   /* enum packet_kind */
	__u8 tcp_flags;
	__u8 ttl;
	__u8 l3_offset;
	__u8 tag_count; /* as in the frame, priority tags too */
	__u8 fin;
	__u8 encapsulated; /* enum encapsulation_flag: what scratch knows of it */
	__u8 label_count;
	__u8 label_ttl;
	__u8 no_link_layer;   /* begins with its IP header */
	__u8 keyed;	      /* the key is whole */
	__u8 local_is_source; /* on which side of the host it was seen */
	__u8 quoted;	      /* the key is that of a quoted packet */
	__u16 zone;
	__be16 source_port;
	__be16 destination_port;
};

/* What was decided; filled on the way for those who trace. */
struct decision {
	__u32 last_hop;
	__u32 out_ifindex;
	__u32 deliver; /* id of the VM that the packet is for, wherever it is addressed to */
	__u8 out_mac[6];
	__u8 verdict;
	__u8 state;
	__u8 flags;
	bool routed; /* redirect with a route of its own: a shared XFRM interface sends nothing
			without */
};

/* Three halfwords: MACs stand at even offsets, and the verifier wants the stack aligned. */
static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

static __always_inline void mac_copy(__u8 *to, const __u8 *from)
{
	__u16 *x = (__u16 *)to;
	const __u16 *y = (const __u16 *)from;

	x[0] = y[0];
	x[1] = y[1];
	x[2] = y[2];
}

static __always_inline bool mac_is_group(const __u8 *mac)
{
	return mac[0] & 1;
}

static __always_inline bool mac_is_zero(const __u8 *mac)
{
	const __u16 *x = (const __u16 *)mac;

	return !(x[0] | x[1] | x[2]);
}

#define OFFSET_MASK 0x7ff /* headers end before this */

struct cursor {
	void *data;
	void *end;
};

/* The header of `size` bytes at the packet's offset, or NULL if it is not all there. */
static __always_inline void *header(const struct cursor *c, const struct packet *p, __u32 size)
{
	__u32 offset = p->offset;
	void *h;

	/* The compiler may know the bound, the verifier does not. */
	asm volatile("%0 &= %1" : "+r"(offset) : "i"(OFFSET_MASK));
	h = c->data + offset;
	return h + size > c->end ? NULL : h;
}

/* Constant after inlining; the helpers of one hook are unknown to the other. */
static __always_inline long load(void *ctx, bool xdp, __u32 offset, void *to, __u32 bytes)
{
	return xdp ? bpf_xdp_load_bytes(ctx, offset, to, bytes)
		   : bpf_skb_load_bytes(ctx, offset, to, bytes);
}

static __always_inline long store(void *ctx, bool xdp, __u32 offset, void *from, __u32 bytes)
{
	return xdp ? bpf_xdp_store_bytes(ctx, offset, from, bytes)
		   : bpf_skb_store_bytes(ctx, offset, from, bytes, 0);
}

/* The sides of a quoted packet are swapped: it went the other way. */
static __always_inline bool source_is_local(const struct packet *p)
{
	return p->local_is_source ^ p->quoted;
}

static __always_inline __u32 now_ticks(const struct control *ctl)
{
	if (ctl->jiffies_mult)
		return (bpf_jiffies64() - ctl->jiffies_base) * ctl->jiffies_mult >> 32;
	return bpf_ktime_get_ns() >> TICK_SHIFT;
}

/* Neither nobody's MAC nor the host's own. */
static __always_inline bool source_is_other(const struct packet *p, const struct interface *in)
{
	return !mac_is_group(p->source) && !mac_is_zero(p->source) &&
	       !mac_equal(p->source, in->mac) && !mac_equal(p->source, in->host_mac);
}

/* A routed host's frames come with its own MAC. */
static __always_inline bool is_for_host_mac(const struct packet *p, const struct interface *in)
{
	return p->no_link_layer || mac_equal(p->destination, in->mac) ||
	       mac_equal(p->destination, in->host_mac);
}

#endif
