/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A reply that does not fit the way back is turned around and becomes the ICMP error that a router
 * there would send: the VM's system learns the path's MTU from it (RFC 1191, RFC 8201).
 */
#ifndef LASTHOP_TOO_BIG_H
#define LASTHOP_TOO_BIG_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include "checksum.h"
#include "frame.h"
#include "key.h"
#include "maps.h"
#include "mss.h"
#include "transport.h"

/* What every IPv4 host takes (RFC 791); a smaller packet is not looked at. */
#define FITS_ANYWAY 576
/* What every IPv6 link takes (RFC 8200 5). A way that takes less has to cut packets up itself. */
#define IPV6_MTU_LEAST 1280

/* As much as an error may quote: RFC 1812 4.3.2.3, RFC 4443 2.4. What is too big is longer. */
#define QUOTE4 (FITS_ANYWAY - sizeof(struct error4))
#define QUOTE6 (IPV6_MTU_LEAST - sizeof(struct error6))

#define CSUM_DIFF_MAX 512 /* of one call, Linux 6.1's limit */

#define ERROR_HOP_LIMIT	    64
#define ERROR_TOS	    0xc0 /* internetwork control: RFC 1812 4.3.2.5 */
#define ICMP4_UNREACHABLE   3
#define ICMP4_TOO_BIG	    4 /* its code */
#define ICMP6_TOO_BIG	    2
#define TAGGED_HEADER_MAX   (sizeof(struct ethhdr) + 8)
#define UDP_CHECKSUM_OFFSET 6

struct error4 {
	struct iphdr ip;
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 unused;
	__be16 mtu;
};

struct error6 {
	struct ipv6hdr ip;
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 mtu;
};

/* What is left of a frame that is being turned around, and what is known of it. */
struct turn {
	__u8 ethernet[32]; /* of the frame, with its tags: l3_offset bytes, at least 14 */
	__u32 l3_offset;
	__u32 header_bytes; /* of its IP header, with extensions */
	__u32 unfinished;
	__u32 mtu;
	__sum16 check; /* of its transport header */
};

/*
 * Of the longest packet that this frame becomes on the wire, from the IP header on. Segments of a
 * protocol that sizes each by itself (SCTP) are taken as such that fit.
 */
static __always_inline __u32 packet_bytes(struct __sk_buff *skb, const struct packet *p)
{
	__u32 bytes = p->length_bytes - p->l3_offset, headers = p->offset - p->l3_offset;
	__u32 segment = skb->gso_size;
	__u8 proto = packet_proto(p);

	if (!segment)
		return bytes;
	if (proto == IPPROTO_TCP)
		/* All that its sequence numbers do not count. */
		headers += p->payload_bytes - (p->seq_end - p->seq) + !!(p->tcp_flags & TCP_SYN) +
			   !!(p->tcp_flags & TCP_FIN);
	else if (proto == IPPROTO_UDP)
		headers += sizeof(struct udp_header);
	else
		return 0;
	headers += segment;
	return headers < bytes ? headers : bytes;
}

/* The transport checksum of the frame, and whether a device is still to finish it. */
static __always_inline bool turn_checksum(struct __sk_buff *skb, const struct packet *p,
					  struct turn *t)
{
	__u8 proto = packet_proto(p);
	__u32 at = proto == IPPROTO_TCP ? TCP_CHECKSUM_OFFSET : UDP_CHECKSUM_OFFSET;

	t->unfinished = false;
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return true;
	if (bpf_skb_load_bytes(skb, p->offset + at, &t->check, sizeof(t->check)))
		return false;
	t->unfinished = skb->gso_size || is_unfinished(p, t->check);
	return true;
}

/*
 * Sum of the quote as the VM will see it. Whoever finishes the checksum in it makes everything from
 * the transport header on add up to the complement of what was in the field before (local checksum
 * offload in the kernel's words).
 */
static __always_inline __s64 quote_sum(struct __sk_buff *skb, const struct turn *t, __u32 headers,
				       __u32 bytes)
{
	__u32 offset = t->l3_offset + headers, part = t->header_bytes;
	__s64 sum = 0;
	void *quote;

	barrier_var(offset);
	offset &= 0x7f;
	quote = (void *)(long)skb->data + offset;
	if (quote + bytes > (void *)(long)skb->data_end)
		return -1;
	if (t->unfinished) {
		if (part > CSUM_DIFF_MAX)
			return -1;
		barrier_var(part);
		part &= CSUM_DIFF_MAX - 4;
		sum = bpf_csum_diff(NULL, 0, quote, part, 0);
		return sum < 0 ? sum : (__s64)((__u64)(__u32)sum + (__u16)~t->check);
	}
	for (__u32 done = 0; done < bytes; done += CSUM_DIFF_MAX) {
		part = bytes - done < CSUM_DIFF_MAX ? bytes - done : CSUM_DIFF_MAX;
		sum = bpf_csum_diff(NULL, 0, quote + done, part, sum);
		if (sum < 0)
			return sum;
	}
	return sum;
}

/*
 * Makes room for the error's headers before what it quotes. The first step is the one that may fail
 * for want of memory; the frame is whole then, and passes.
 */
static __always_inline bool turn_cut(struct __sk_buff *skb, const struct turn *t, __u32 headers,
				     __u32 bytes)
{
	/* Also gives up segmentation. */
	return !bpf_skb_change_tail(skb, t->l3_offset + bytes, 0) &&
	       !bpf_skb_change_head(skb, headers, 0);
}

/* Back to where it came from, tags and all. */
static __always_inline bool turn_ethernet(struct __sk_buff *skb, const struct turn *t)
{
	__u32 bytes = t->l3_offset;

	/* Nothing new, but in a form that the verifier of Linux 6.1 follows too. */
	barrier_var(bytes);
	bytes = ((bytes - 1) & (sizeof(t->ethernet) - 1)) + 1;
	return !bpf_skb_store_bytes(skb, 0, t->ethernet, bytes, 0);
}

/* IPv4. `t` tells of the frame before. */
__noinline int turn_error4(struct __sk_buff *skb, const struct packet *p,
			   const struct interface *in, const struct turn *t)
{
	struct error4 e = {};
	__s64 sum;

	if (!p || !in || !t || !turn_cut(skb, t, sizeof(e), QUOTE4))
		return REASON_ERROR;
	e.ip.version = 4;
	e.ip.ihl = sizeof(e.ip) / 4;
	e.ip.tos = ERROR_TOS;
	e.ip.tot_len = bpf_htons(sizeof(e) + QUOTE4);
	e.ip.frag_off = bpf_htons(0x4000);
	e.ip.ttl = ERROR_HOP_LIMIT;
	e.ip.protocol = IPPROTO_ICMP;
	e.ip.saddr = in->icmp_source4 ? in->icmp_source4 : p->key4.remote;
	e.ip.daddr = p->key4.local;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&e.ip, sizeof(e.ip), 0);
	e.ip.check = ~sum_fold(sum);
	e.type = ICMP4_UNREACHABLE;
	e.code = ICMP4_TOO_BIG;
	e.mtu = bpf_htons(t->mtu < 0xffff ? t->mtu : 0xffff);
	sum = quote_sum(skb, t, sizeof(e), QUOTE4);
	if (sum < 0)
		return REASON_ERROR;
	e.checksum = ~sum_fold((__u64)sum + bpf_htons(e.type << 8 | e.code) + e.mtu);
	if (!turn_ethernet(skb, t) || bpf_skb_store_bytes(skb, t->l3_offset, &e, sizeof(e), 0))
		return REASON_ERROR;
	return REASON_TOO_BIG;
}

__noinline int turn_error6(struct __sk_buff *skb, const struct packet *p,
			   const struct interface *in, const struct turn *t)
{
	const __u32 *configured;
	struct error6 e = {};
	__s64 sum;

	if (!p || !in || !t || !turn_cut(skb, t, sizeof(e), QUOTE6))
		return REASON_ERROR;
	e.ip.version = 6;
	e.ip.payload_len = bpf_htons(sizeof(e) - sizeof(e.ip) + QUOTE6);
	e.ip.nexthdr = IPPROTO_ICMPV6;
	e.ip.hop_limit = ERROR_HOP_LIMIT;
	configured = (const __u32 *)in->icmp_source6;
	if (configured[0] | configured[1] | configured[2] | configured[3])
		__builtin_memcpy(&e.ip.saddr, in->icmp_source6, 16);
	else
		__builtin_memcpy(&e.ip.saddr, p->key6.remote, 16);
	__builtin_memcpy(&e.ip.daddr, p->key6.local, 16);
	e.type = ICMP6_TOO_BIG;
	e.mtu = bpf_htonl(t->mtu);
	sum = quote_sum(skb, t, sizeof(e), QUOTE6);
	if (sum < 0)
		return REASON_ERROR;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&e.ip.saddr, 2 * sizeof(e.ip.saddr), sum);
	e.checksum = ~sum_fold((__u64)(__u32)sum + e.ip.payload_len + bpf_htonl(IPPROTO_ICMPV6) +
			       bpf_htons(e.type << 8) + e.mtu);
	if (!turn_ethernet(skb, t) || bpf_skb_store_bytes(skb, t->l3_offset, &e, sizeof(e), 0))
		return REASON_ERROR;
	return REASON_TOO_BIG;
}

/*
 * For a reply that becomes packets of `bytes`: REASON_REDIRECT if it may go, REASON_TOO_BIG if it
 * is now an answer to the VM. It does not matter whether an IPv4 packet forbids fragments: we
 * cannot make any, and systems that allow them heed the answer as well.
 */
__noinline int reply_oversize(struct __sk_buff *skb, const struct packet *p,
			      const struct interface *in, __u32 bytes, __u32 mtu)
{
	struct turn t = {.mtu = mtu};

	if (!p || !in)
		return REASON_ERROR;
	/* Nobody answers an error or what is not the first of its fragments (RFC 1122 3.2.2). */
	if (p->kind == PACKET_ERROR || p->kind == PACKET_FRAGMENT)
		return REASON_REDIRECT;
	if (p->family == 6 && mtu < IPV6_MTU_LEAST)
		t.mtu = IPV6_MTU_LEAST;
	if (bytes <= t.mtu)
		return REASON_REDIRECT;
	t.l3_offset = p->l3_offset;
	t.header_bytes = p->offset - p->l3_offset;
	if (!turn_checksum(skb, p, &t) || bpf_skb_load_bytes(skb, 0, t.ethernet, TAGGED_HEADER_MAX))
		return REASON_ERROR;
	mac_copy(t.ethernet, p->source);
	mac_copy(t.ethernet + 6, p->destination);
	return p->family == 4 ? turn_error4(skb, p, in, &t) : turn_error6(skb, p, in, &t);
}

#endif
