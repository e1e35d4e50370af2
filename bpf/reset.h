/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Uplink: a segment whose VM is down is turned around and becomes the reset that the VM's host
 * would send for a connection that it does not know (RFC 9293 3.10.7.1).
 */
#ifndef LASTHOP_RESET_H
#define LASTHOP_RESET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include "checksum.h"
#include "encapsulation.h"
#include "frame.h"
#include "hook.h"
#include "key.h"
#include "mss.h"
#include "reply_send.h"
#include "service.h"

#define RESET_HOP_LIMIT 64

/* An IP header and TCP's. */
struct reset4 {
	struct iphdr ip;
	struct tcphdr tcp;
};

struct reset6 {
	struct ipv6hdr ip;
	struct tcphdr tcp;
};

union reset {
	struct reset4 v4;
	struct reset6 v6;
};

/* Of a segment that has none of IP's options, and is no reset itself. */
static __always_inline bool reset_is_possible(const struct packet *p)
{
	__u32 header = p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	return (p->kind == PACKET_DATA || p->kind == PACKET_OPEN) &&
	       p->offset - p->l3_offset == header && !p->label_count && !p->more_fragments &&
	       !(p->encapsulated & (ENCAPSULATION_IPSEC | ENCAPSULATION_XFRM));
}

/* `unfinished`: whoever sends it finishes the checksum, from the sum of the pseudo header on. */
static __always_inline void reset_tcp(struct tcphdr *tcp, const struct packet *p, bool unfinished)
{
	__u64 sum = sum_pseudo(p, sizeof(*tcp), IPPROTO_TCP);

	tcp->source = p->family == 4 ? p->key4.local_port : p->key6.local_port;
	tcp->dest = p->family == 4 ? p->key4.remote_port : p->key6.remote_port;
	tcp->doff = sizeof(*tcp) / 4;
	tcp->rst = 1;
	if (p->tcp_flags & TCP_ACK) {
		tcp->seq = bpf_htonl(p->ack);
	} else {
		tcp->ack = 1;
		tcp->ack_seq = bpf_htonl(p->seq_end);
	}
	if (unfinished) {
		tcp->check = sum_fold(sum);
		return;
	}
	tcp->check = ~sum_fold(sum + sum_halves(tcp, sizeof(*tcp)));
}

static __always_inline void reset4_fill(struct reset4 *r, const struct packet *p, bool unfinished)
{
	r->ip.version = 4;
	r->ip.ihl = sizeof(r->ip) / 4;
	r->ip.tot_len = bpf_htons(sizeof(*r));
	r->ip.frag_off = bpf_htons(0x4000);
	r->ip.ttl = RESET_HOP_LIMIT;
	r->ip.protocol = IPPROTO_TCP;
	r->ip.saddr = p->key4.local;
	r->ip.daddr = p->key4.remote;
	r->ip.check = ~sum_fold(sum_halves(&r->ip, sizeof(r->ip)));
	reset_tcp(&r->tcp, p, unfinished);
}

static __always_inline void reset6_fill(struct reset6 *r, const struct packet *p, bool unfinished)
{
	r->ip.version = 6;
	r->ip.payload_len = bpf_htons(sizeof(r->tcp));
	r->ip.nexthdr = IPPROTO_TCP;
	r->ip.hop_limit = RESET_HOP_LIMIT;
	__builtin_memcpy(&r->ip.saddr, p->key6.local, 16);
	__builtin_memcpy(&r->ip.daddr, p->key6.remote, 16);
	reset_tcp(&r->tcp, p, unfinished);
}

static __always_inline int reset_done(const struct packet *p, struct decision *d)
{
	struct service_stats *stats = service_stats_of(service_find(p));

	bump(stats, reset);
	d->verdict = VERDICT_ANSWER;
	d->out_ifindex = p->ifindex;
	mac_copy(d->out_mac, p->source);
	return REASON_VM_RESET;
}

static __always_inline int reset_impossible(const struct packet *p)
{
	struct service_stats *stats = service_stats_of(service_find(p));

	bump(stats, held);
	return REASON_VM_HELD;
}

/* A shared tunnel device sends back into the tunnel that the segment came from. */
static __always_inline bool reset_encapsulate(struct __sk_buff *skb, const struct packet *p,
					      const struct decision *d)
{
	struct last_hop *record;
	__u32 used;
	int why;

	if (!(p->encapsulated & ENCAPSULATION_TUNNEL))
		return true;
	record = reply_last_hop(d->last_hop, &used, &why);
	return record && tunnel_key_write(skb, &record->encapsulation.tunnel);
}

__noinline int reset_skb(struct __sk_buff *skb, const struct packet *p, struct decision *d)
{
	union reset r = {};
	struct ethhdr *eth;
	bool unfinished;
	__sum16 check;
	__u32 bytes;
	long rc;

	if (!p || !d)
		return REASON_ERROR;
	/* What IPsec protected must not be answered in the clear. */
	if (!reset_is_possible(p) || is_decrypted(skb, p) || !reset_encapsulate(skb, p, d) ||
	    bpf_skb_load_bytes(skb, p->offset + TCP_CHECKSUM_OFFSET, &check, sizeof(check)))
		return reset_impossible(p);
	unfinished = skb->gso_size || is_unfinished(p, check);
	bytes = p->family == 4 ? sizeof(r.v4) : sizeof(r.v6);
	if (bpf_skb_change_tail(skb, p->l3_offset + bytes, 0))
		return reset_impossible(p);
	if (p->family == 4) {
		reset4_fill(&r.v4, p, unfinished);
		rc = bpf_skb_store_bytes(skb, p->l3_offset, &r.v4, sizeof(r.v4), 0);
	} else {
		reset6_fill(&r.v6, p, unfinished);
		rc = bpf_skb_store_bytes(skb, p->l3_offset, &r.v6, sizeof(r.v6), 0);
	}
	if (rc)
		return reset_impossible(p);
	if (!p->no_link_layer) {
		eth = (void *)(long)skb->data;
		if ((void *)(eth + 1) > (void *)(long)skb->data_end)
			return reset_impossible(p);
		mac_copy(eth->h_dest, p->source);
		mac_copy(eth->h_source, p->destination);
	}
	return reset_done(p, d);
}

__noinline int reset_xdp(struct xdp_md *ctx, const struct packet *p, const struct interface *in,
			 struct decision *d)
{
	union reset r = {};
	struct ethhdr *eth;
	bool unfinished;
	__sum16 check;
	__s32 surplus;
	long rc;

	if (!p || !in || !d)
		return REASON_ERROR;
	surplus = p->length_bytes - p->l3_offset - (p->family == 4 ? sizeof(r.v4) : sizeof(r.v6));
	if (!reset_is_possible(p) || surplus < 0 ||
	    bpf_xdp_load_bytes(ctx, p->offset + TCP_CHECKSUM_OFFSET, &check, sizeof(check)) ||
	    bpf_xdp_adjust_tail(ctx, -surplus))
		return reset_impossible(p);
	/* Under generic XDP it stays what it was, a packet whose sum somebody else finishes. */
	unfinished = in->hook == HOOK_XDP_GENERIC && is_unfinished(p, check);
	if (p->family == 4) {
		reset4_fill(&r.v4, p, unfinished);
		rc = bpf_xdp_store_bytes(ctx, p->l3_offset, &r.v4, sizeof(r.v4));
	} else {
		reset6_fill(&r.v6, p, unfinished);
		rc = bpf_xdp_store_bytes(ctx, p->l3_offset, &r.v6, sizeof(r.v6));
	}
	if (rc)
		return reset_impossible(p);
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return reset_impossible(p);
	mac_copy(eth->h_dest, p->source);
	mac_copy(eth->h_source, p->destination);
	return reset_done(p, d);
}

#endif
