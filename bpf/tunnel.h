/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What both directions of a built-in tunnel need. Its netdev X is one end of a veth pair whose
 * other end, P, nobody sees: what leaves by X gets its outer header there (tunnel_out.h), what
 * arrives at the underlay loses it and goes on as if received by X (tunnel_in.h).
 */
#ifndef LASTHOP_TUNNEL_H
#define LASTHOP_TUNNEL_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include "encapsulation.h"
#include "frame.h"
#include "maps.h"

struct vlan_tagged {
	__be16 tci;
	__be16 proto;
};

struct gre_base {
	__be16 flags;
	__be16 proto;
};

struct udp_base {
	__be16 source;
	__be16 destination;
	__be16 length;
	__be16 check;
};

struct vxlan {
	__be32 flags;
	__be32 vni; /* 24 bits, then 8 reserved */
};

#define GRE_CHECKSUM bpf_htons(0x8000)
#define GRE_KEY	     bpf_htons(0x2000)
#define GRE_SEQUENCE bpf_htons(0x1000)
/* RFC 2784 2.3: these a receiver has to know, and does not; or another version. */
#define GRE_UNKNOWN bpf_htons(0x4c07)
#define VXLAN_VNI   bpf_htonl(0x08000000)

#define VSID_SHIFT 8 /* RFC 7637: beside the FlowID in the key */

#define LABEL_SHIFT    12
#define LABEL_TC_SHIFT 9
#define LABEL_IPV4     0 /* explicit null */
#define LABEL_IPV6     2

#define ECN_MASK    3
#define ECN_CE	    3
#define VLAN_VID    0x0fff
#define PACKET_OURS 0 /* PACKET_HOST of linux/if_packet.h, whose names are not ours */

/* `size` bytes at `offset`, or NULL if they are not all there. */
static __always_inline void *bytes_at(const struct cursor *c, __u32 offset, __u32 size)
{
	void *at;

	/* The compiler may know the bound, the verifier does not. */
	asm volatile("%0 &= %1" : "+r"(offset) : "i"(OFFSET_MASK));
	at = c->data + offset;
	return at + size > c->end ? NULL : at;
}

static __always_inline struct cursor cursor_of(struct __sk_buff *skb)
{
	struct cursor c = {(void *)(long)skb->data, (void *)(long)skb->data_end};

	return c;
}

static __always_inline bool is_ip(__be16 proto)
{
	return proto == bpf_htons(ETH_P_IP) || proto == bpf_htons(ETH_P_IPV6);
}

/* Of an IPv4 header without options, that is 10 words; 0 if its checksum is right. */
static __always_inline __u16 ip4_checksum(const struct iphdr *ip)
{
	const __u16 *word = (const __u16 *)ip;
	__u32 sum = 0;

	for (int i = 0; i < 10; i++)
		sum += word[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum += sum >> 16;
	return ~sum;
}

/* RFC 1624: one word of an IPv4 header becomes another. */
static __always_inline void ip4_replace_word(struct iphdr *ip, __u16 *word, __u16 value)
{
	__u32 sum = (__u16)~ip->check + (__u16) ~*word + value;

	sum = (sum & 0xffff) + (sum >> 16);
	sum += sum >> 16;
	ip->check = ~sum;
	*word = value;
}

/*
 * Says what a frame carries: its EtherType, and with it skb->protocol, which no helper sets. But a
 * tag that is taken out of a frame makes it so; a second push is what puts the first into the
 * frame.
 */
static __noinline bool frame_becomes(struct __sk_buff *skb, __be16 proto)
{
	if (bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &proto, sizeof(proto), 0))
		return false;
	return !bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), 1) &&
	       !bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), 1) && !bpf_skb_vlan_pop(skb) &&
	       !bpf_skb_vlan_pop(skb);
}

static __always_inline struct tunnel_stats *tunnel_stats_of(const struct tunnel *t)
{
	__u32 ifindex = t->ifindex;

	return bpf_map_lookup_elem(&tunnel_stats, &ifindex);
}

static __noinline int tunnel_sent(const struct tunnel *t, int action, __u32 bytes)
{
	struct tunnel_stats *stats = tunnel_stats_of(t);

	if (stats && action == TC_ACT_REDIRECT) {
		stats->sent_packets++;
		stats->sent_bytes += bytes;
	} else if (stats) {
		stats->sent_errors++;
	}
	return action;
}

static __noinline int tunnel_received(const struct tunnel *t, int action, __u32 bytes)
{
	struct tunnel_stats *stats = tunnel_stats_of(t);

	if (stats && action == TC_ACT_REDIRECT) {
		stats->received_packets++;
		stats->received_bytes += bytes;
	} else if (stats) {
		stats->received_errors++;
	}
	return action;
}

#endif
