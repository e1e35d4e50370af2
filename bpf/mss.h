/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The MSS option of a SYN or SYN-ACK is lowered to what fits the way back of its flow, so that
 * neither side sends segments that would not pass there. One without the option stays: 536 and 1220
 * bytes, the defaults (RFC 9293 3.7.1), fit.
 */
#ifndef LASTHOP_MSS_H
#define LASTHOP_MSS_H

#include "checksum.h"
#include "frame.h"
#include "transport.h"

#define TCP_HEADER_BYTES    20
#define TCP_DATA_OFFSET	    12 /* the byte that holds it */
#define TCP_CHECKSUM_OFFSET 16
#define TCP_OPTIONS_MAX	    40

#define TCP_OPTION_END	     0
#define TCP_OPTION_NOP	     1
#define TCP_OPTION_MSS	     2
#define TCP_OPTION_MSS_BYTES 4

/* Nobody means less: no segment would hold more than a few bytes (Linux's TCP_MIN_MSS). */
#define MSS_LEAST 88

struct tcp_options {
	__u8 octets[64]; /* at most TCP_OPTIONS_MAX, then 0: the end of a list */
	__u32 next;	 /* where the next option begins */
};

/*
 * Where among the options the value of the MSS stands; 0 if there is none, or the list is broken.
 * Goes over every place, not from option to option, and keeps where it is in memory that the
 * verifier does not follow: to it all ways to a place are one.
 */
__noinline int mss_find(struct tcp_options *options, __u32 bytes)
{
	if (!options)
		return 0;
	for (__u32 at = 0; at < TCP_OPTIONS_MAX; at++) {
		__u8 kind = options->octets[at], length = options->octets[at + 1];

		if (at != READ_ONCE(options->next))
			continue;
		if (kind == TCP_OPTION_END)
			return 0;
		if (kind == TCP_OPTION_NOP)
			length = 1;
		else if (length < 2)
			return 0;
		WRITE_ONCE(options->next, at + length);
		if (kind == TCP_OPTION_MSS)
			return length == TCP_OPTION_MSS_BYTES && at + length <= bytes ? at + 2 : 0;
	}
	return 0;
}

/* What a segment may hold on a link of this MTU; 0 if that is less than anybody means. */
static __always_inline __u32 mss_bound(const struct packet *p, __u32 mtu)
{
	__u32 headers = TCP_HEADER_BYTES + (p->family == 4 ? 20 : 40);

	return mtu < headers + MSS_LEAST ? 0 : mtu - headers;
}

/* Bytes of options, from the byte with the data offset. A multiple of 4, at most TCP_OPTIONS_MAX.
 */
static __always_inline __u32 tcp_options_bytes(__u8 data_offset)
{
	__u32 bytes = (data_offset >> 4) * 4;

	return bytes <= TCP_HEADER_BYTES ? 0 : (bytes - TCP_HEADER_BYTES) & 0x3c;
}

/* Where in the frame the value stands, if it is there and over the bound; else 0. */
static __always_inline __u32 mss_excess(void *ctx, bool xdp, const struct packet *p, __u32 bound)
{
	struct tcp_options options = {};
	__u32 bytes, at, transport = p->offset;
	__u8 data_offset;
	__be16 value;

	if (!bound || load(ctx, xdp, transport + TCP_DATA_OFFSET, &data_offset, 1))
		return 0;
	bytes = tcp_options_bytes(data_offset);
	if (!bytes)
		return 0;
	/* Nothing new, but in a form that the verifier of Linux 6.1 follows too. */
	barrier_var(bytes);
	bytes = ((bytes - 1) & (sizeof(options.octets) - 1)) + 1;
	if (load(ctx, xdp, transport + TCP_HEADER_BYTES, options.octets, bytes))
		return 0;
	at = mss_find(&options, bytes);
	if (!at || load(ctx, xdp, transport + TCP_HEADER_BYTES + at, &value, sizeof(value)) ||
	    bpf_ntohs(value) <= bound)
		return 0;
	return transport + TCP_HEADER_BYTES + at;
}

/* A halfword that stands at an odd offset is summed with its bytes the other way round. */
static __always_inline __u16 mss_summed(const struct packet *p, __u32 at, __be16 value)
{
	return (at - p->offset) & 1 ? bpf_ntohs(value) : value;
}

static __always_inline bool mss_lower_skb(struct __sk_buff *skb, const struct packet *p, __u32 at,
					  __u32 bound)
{
	__be16 before, after = bpf_htons(bound);

	if (bpf_skb_load_bytes(skb, at, &before, 2) || bpf_skb_store_bytes(skb, at, &after, 2, 0))
		return false;
	/* Knows an unfinished checksum, and leaves it. It cannot fail where the store did not. */
	return !bpf_l4_csum_replace(skb, p->offset + TCP_CHECKSUM_OFFSET, mss_summed(p, at, before),
				    mss_summed(p, at, after), 2);
}

static __always_inline bool mss_lower_xdp(struct xdp_md *ctx, const struct packet *p, __u32 at,
					  __u32 bound)
{
	__be16 before, after = bpf_htons(bound);
	__u32 offset = p->offset + TCP_CHECKSUM_OFFSET;
	__sum16 check;

	if (bpf_xdp_load_bytes(ctx, at, &before, 2) || bpf_xdp_load_bytes(ctx, offset, &check, 2))
		return false;
	/* Nothing here tells whether the checksum is finished. What may not be is left alone. */
	if (is_unfinished(p, check) || bpf_xdp_store_bytes(ctx, at, &after, 2))
		return false;
	check = ~sum_fold((__u64)(__u16)~check + (__u16)~mss_summed(p, at, before) +
			  mss_summed(p, at, after)); /* RFC 1624 */
	return !bpf_xdp_store_bytes(ctx, offset, &check, 2);
}

/* Of a VM's SYN-ACK. */
__noinline int mss_clamp_reply(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	__u32 bound, at;

	if (!p)
		return false;
	bound = mss_bound(p, mtu);
	at = mss_excess(skb, false, p, bound);
	return at && mss_lower_skb(skb, p, at, bound);
}

#endif
