/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Tap: a reply by a last hop: what it has to be, and how it leaves. */
#ifndef LASTHOP_REPLY_SEND_H
#define LASTHOP_REPLY_SEND_H

#include <linux/if_ether.h>
#include "count.h"
#include "fib.h"
#include "frame.h"
#include "interface.h"
#include "last_hop.h"
#include "maps.h"
#include "mss.h"
#include "too_big.h"

/* The record that a flow's replies use now, and its index, or NULL with `why` set. */
static __always_inline struct last_hop *reply_last_hop(__u32 reference, __u32 *used, int *why)
{
	__u32 *alias, index = reference & LAST_HOP_INDEX_MASK, target;
	struct last_hop *record;

	*why = REASON_STALE_LAST_HOP;
	alias = bpf_map_lookup_elem(&last_hop_alias, &index);
	if (!alias)
		return NULL;
	target = READ_ONCE(*alias);
	if (target >> LAST_HOP_INDEX_BITS != reference >> LAST_HOP_INDEX_BITS)
		return NULL;
	target &= LAST_HOP_INDEX_MASK;
	if (target == LAST_HOP_ROUTE) {
		*why = REASON_DEVICE_DOWN;
		return NULL;
	}
	if (target == LAST_HOP_DROP) {
		*why = REASON_DEVICE_DROP;
		return NULL;
	}
	record = bpf_map_lookup_elem(&last_hops, &target);
	if (!record || record->kind == LAST_HOP_NONE)
		return NULL;
	*used = target;
	return record;
}

/* Observe: would the packet have gone another way? On a routed host the FIB knows. */
static __noinline int reply_observe(struct __sk_buff *skb, const struct packet *p,
				    const struct interface *in, const struct last_hop *record,
				    bool routed)
{
	struct bpf_fib_lookup fib = {};
	long rc;

	if (record->kind == LAST_HOP_STACK)
		return routed && !record->mark ? REASON_OBSERVE_SAME : REASON_OBSERVE_CHANGE;
	if (!routed)
		return record->kind == LAST_HOP_ETHERNET && mac_equal(p->destination, record->mac)
			       ? REASON_OBSERVE_SAME
			       : REASON_OBSERVE_CHANGE;
	fib_ask(&fib, p, in, false);
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (rc == BPF_FIB_LKUP_RET_SUCCESS &&
	    (record->kind == LAST_HOP_IP ? fib.ifindex == record->ifindex
					 : mac_equal(fib.dmac, record->mac)))
		return REASON_OBSERVE_SAME;
	/* A neighbour that is being looked up: only the interface is known. */
	if (rc == BPF_FIB_LKUP_RET_NO_NEIGH && fib.ifindex == record->ifindex)
		return REASON_OBSERVE_SAME;
	return REASON_OBSERVE_CHANGE;
}

/* Gives the frame the last hop's tags in place of the VM's. False if the kernel refuses. */
static __noinline bool reply_retag(struct __sk_buff *skb, const struct packet *p,
				   const struct last_hop *record)
{
	if (p->tag_count > 0 && bpf_skb_vlan_pop(skb))
		return false;
	if (p->tag_count > 1 && bpf_skb_vlan_pop(skb))
		return false;
	if (record->tags[1].proto &&
	    bpf_skb_vlan_push(skb, record->tags[1].proto, record->tags[1].vid))
		return false;
	if (record->tags[0].proto &&
	    bpf_skb_vlan_push(skb, record->tags[0].proto, record->tags[0].vid))
		return false;
	return true;
}

static __always_inline bool reply_decrement_ttl(struct __sk_buff *skb, const struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	/* Tags beyond the first may stand in the frame; where they did is where the header is. */
	if (p->family == 4) {
		struct iphdr *ip = data + p->l3_offset;
		__u32 check;

		if ((void *)(ip + 1) > end)
			return false;
		check = ip->check + bpf_htons(0x0100); /* RFC 1624 */
		ip->check = check + (check >= 0xffff);
		ip->ttl--;
	} else {
		struct ipv6hdr *ip = data + p->l3_offset;

		if ((void *)(ip + 1) > end)
			return false;
		ip->hop_limit--;
	}
	return true;
}

static __always_inline bool reply_rewrite_macs(struct __sk_buff *skb, const struct last_hop *record,
					       bool routed)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return false;
	mac_copy(eth->h_dest, record->mac);
	if (routed)
		mac_copy(eth->h_source, record->source_mac);
	return true;
}

/*
 * bpf_redirect does not notice that a netdev is gone. Asking costs 10 ns, so ask once a tick:
 * within one, a packet has just come from there or gone there.
 */
static __always_inline bool interface_exists(const struct last_hop *record,
					     const struct last_hop_stats *stats, __u32 now)
{
	__u32 slot = record->slot, *device;

	if (stats->last_seen == now)
		return true;
	device = bpf_map_lookup_elem(&egress_devices, &slot);
	return device && *device == record->ifindex;
}

#define PACKET_TO_HOST 0 /* PACKET_HOST of linux/if_packet.h, whose names are not ours */

/*
 * Hands the frame to the host's own routing: addressed to the host, and marked for the rule that
 * leads back. What the stack does with it then, an IPsec policy or labels, no redirect could.
 */
static __noinline int reply_via_stack(struct __sk_buff *skb, const struct interface *in,
				      const struct last_hop *record)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return REASON_ERROR;
	mac_copy(eth->h_dest, in->host_mac);
	if (record->mark)
		skb->mark = record->mark;
	bpf_skb_change_type(skb, PACKET_TO_HOST);
	return REASON_STACK;
}

/*
 * Makes the reply fit its way back: REASON_REDIRECT, or why it does not go. What the host's own
 * routing sends is measured there.
 */
static __always_inline int reply_fit(struct __sk_buff *skb, const struct packet *p,
				     const struct interface *in, const struct last_hop *record,
				     struct decision *d)
{
	__u32 bytes = p->length_bytes - p->l3_offset;
	int why = REASON_REDIRECT;
	struct interface *out;

	if (bytes <= FITS_ANYWAY && !(p->tcp_flags & TCP_SYN))
		return REASON_REDIRECT;
	out = interface_find(record->ifindex);
	if (!out || !out->mtu)
		return REASON_REDIRECT;
	if (bytes > FITS_ANYWAY && bytes > out->mtu && record->kind != LAST_HOP_STACK) {
		bytes = packet_bytes(skb, p);
		if (bytes > out->mtu)
			why = reply_oversize(skb, p, in, bytes, out->mtu);
	}
	if (why == REASON_REDIRECT && (p->tcp_flags & TCP_SYN) &&
	    (out->flags & INTERFACE_CLAMP_MSS))
		mss_clamp_reply(skb, p, out->mtu);
	if (why == REASON_TOO_BIG) {
		d->out_ifindex = p->ifindex;
		mac_copy(d->out_mac, p->source);
	}
	return why;
}

/* Sends it, or says why it passes. Until the first write the frame is as the VM sent it. */
static __always_inline int reply_send(struct __sk_buff *skb, const struct packet *p,
				      const struct interface *in, const struct last_hop *record,
				      struct last_hop_stats *stats, struct decision *d)
{
	bool routed = is_for_host_mac(p, in);
	int why;

	if (record->ifindex == p->ifindex)
		return REASON_HAIRPIN;
	if (!interface_exists(record, stats, p->now))
		return REASON_INTERFACE_GONE;
	if (in->policy == POLICY_OBSERVE)
		return reply_observe(skb, p, in, record, routed);
	/* Nothing but routing leads to an interface without a link layer. */
	if ((routed || record->kind == LAST_HOP_IP) && record->kind != LAST_HOP_STACK &&
	    p->ttl <= 1)
		return REASON_TTL;
	why = reply_fit(skb, p, in, record, d);
	if (why != REASON_REDIRECT)
		return why;
	if (record->kind == LAST_HOP_STACK) {
		count_reply(stats, p);
		return reply_via_stack(skb, in, record);
	}
	if (record->encapsulated & ENCAPSULATION_XFRM) {
		xfrm_id_write(skb, record);
		d->routed = true;
	} else if ((record->encapsulated & ENCAPSULATION_TUNNEL) &&
		   !tunnel_key_write(skb, &record->encapsulation.tunnel)) {
		return REASON_ERROR;
	}
	if ((routed || record->kind == LAST_HOP_IP) && !reply_decrement_ttl(skb, p))
		return REASON_ERROR;
	if ((p->tag_count || record->tags[0].proto) && !reply_retag(skb, p, record))
		return REASON_ERROR;
	/* The kernel takes the Ethernet header off when it redirects to a netdev without one. */
	if (record->kind == LAST_HOP_ETHERNET && !reply_rewrite_macs(skb, record, routed))
		return REASON_ERROR;
	d->out_ifindex = record->ifindex;
	mac_copy(d->out_mac, record->mac);
	count_reply(stats, p);
	return REASON_REDIRECT;
}

#endif
