/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Tap: send a VM's reply back to where its request came from. */
#ifndef LASTHOP_REPLY_H
#define LASTHOP_REPLY_H

#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include "count.h"
#include "exclude.h"
#include "fib.h"
#include "frame.h"
#include "key.h"
#include "last_hop.h"
#include "learn.h"
#include "maps.h"
#include "mss.h"
#include "notice.h"
#include "too_big.h"

static __noinline __u32 vm_learn(const struct packet *p, const struct interface *in)
{
	struct vm_key key = {.zone = in->zone};
	struct vm vm = {.ifindex = p->ifindex, .last_seen = p->now};
	__u32 zero = 0, slot = in->slot;
	struct allocations *given = bpf_map_lookup_elem(&allocations, &zero);
	struct budget *budget = bpf_map_lookup_elem(&budgets, &slot);

	if (!given || !budget)
		return 0;
	if (__sync_fetch_and_add(&budget->vms, 1) >= budget->vms_max) {
		__sync_fetch_and_add(&budget->vms, -1);
		notice(NOTICE_VM_BUDGET, p, 0);
		return 0;
	}
	mac_copy(key.mac, p->source);
	vm.id = __sync_fetch_and_add(&given->vms, 1) + 1;
	if (!bpf_map_update_elem(&vms, &key, &vm, BPF_NOEXIST)) {
		notice(NOTICE_VM, p, 0);
		return vm.id;
	}
	__sync_fetch_and_add(&budget->vms, -1);
	/* Another CPU was first, or the table is full. */
	struct vm *found = bpf_map_lookup_elem(&vms, &key);

	return found ? found->id : 0;
}

/*
 * Enters a VM that is seen on a tap, or has come to it from another one. Whoever finds the tap's
 * cell free claims it; two MACs of one tap share nothing but that cell.
 */
static __noinline __u32 vm_enter(const struct packet *p, const struct interface *in)
{
	__u32 slot = in->slot, id;
	struct vm *vm = vm_find(in->zone, p->source);
	struct interface *before;
	struct tap *tap;

	if (vm) {
		id = vm->id;
		if (vm->ifindex != p->ifindex) {
			/* Moved: the cell of the tap that it left must not answer for it. */
			before = bpf_map_lookup_elem(&interfaces, &vm->ifindex);
			if (before) {
				tap = bpf_map_lookup_elem(&taps, &before->slot);
				if (tap && tap->vm == id) {
					tap->vm = 0;
					barrier();
					tap->claimed = 0;
				}
			}
			vm->ifindex = p->ifindex;
			notice(NOTICE_VM_MOVED, p, 0);
		}
		if (vm->last_seen != p->now)
			vm->last_seen = p->now;
	} else {
		id = vm_learn(p, in);
	}
	tap = bpf_map_lookup_elem(&taps, &slot);
	if (!id || !tap || tap->claimed || __sync_val_compare_and_swap(&tap->claimed, 0, 1))
		return id;
	mac_copy(tap->mac, p->source);
	barrier();
	WRITE_ONCE(tap->vm, id);
	return id;
}

/* Id of the VM that sent this frame, 0 if it cannot be one of ours. */
static __always_inline __u32 vm_of(const struct packet *p, const struct interface *in)
{
	__u32 slot = in->slot, id;
	struct tap *tap = bpf_map_lookup_elem(&taps, &slot);

	if (tap) {
		id = READ_ONCE(tap->vm);
		/* Twice the same id: the MAC in between was its. */
		if (id && mac_equal(tap->mac, p->source) && READ_ONCE(tap->vm) == id) {
			if (tap->last_seen != p->now)
				tap->last_seen = p->now;
			return id;
		}
	}
	return source_is_other(p, in) ? vm_enter(p, in) : 0;
}

/* Why a sender has no id. */
static __always_inline int no_vm_reason(const struct packet *p, const struct interface *in)
{
	return source_is_other(p, in) ? REASON_VM_BUDGET : REASON_SOURCE_MAC;
}

/*
 * Would the host's own routing bring what answers this packet to the VM that sent it? On a bridge a
 * client may be where VMs are: only the VM's MAC says yes.
 */
static __always_inline bool is_routed_back(struct __sk_buff *skb, const struct packet *p,
					   const struct interface *in)
{
	struct bpf_fib_lookup fib = {};
	long rc;

	fib_ask(&fib, p, in, true);
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (rc == BPF_FIB_LKUP_RET_SUCCESS)
		return mac_equal(fib.dmac, p->source);
	return rc == BPF_FIB_LKUP_RET_NO_NEIGH && is_for_host_mac(p, in) &&
	       (fib.ifindex == in->l3_ifindex || fib.ifindex == p->ifindex);
}

/*
 * Of a flow that a VM opens: if the source may be another's address, the answers are handed to the
 * VM, or to the one that a stored policy names. Whose address it is the host's routing knows, if it
 * knows the network at all; if not, answers that a bridge brings to the VM's MAC need no help. UDP
 * from a service's address is rather a reply whose flow was lost.
 */
__noinline int reply_transparent(struct __sk_buff *skb, const struct packet *p,
				 const struct interface *in, struct flow *flow)
{
	struct vm_cell *cell;
	__u32 number;

	if (!p || !in || !flow)
		return 0;
	number = vm_cell_number(flow->vm);
	cell = bpf_map_lookup_elem(&vm_cells, &number);
	if (!cell || (packet_proto(p) == IPPROTO_UDP && service_find(p)) ||
	    is_routed_back(skb, p, in))
		return 0;
	flow->flags |= FLOW_TRANSPARENT;
	if (cell->responses)
		flow->vm = cell->responses;
	return 0;
}

/* A packet of a VM without a flow: is it the first of a connection that the VM opens? */
static __noinline int reply_local_origin(struct __sk_buff *skb, const struct packet *p,
					 const struct interface *in, const struct control *ctl,
					 __u32 vm)
{
	__u8 proto = packet_proto(p);
	struct embryo embryo = {};

	if (proto == IPPROTO_UDP && p->kind == PACKET_DATA)
		embryo.flow.state = FLOW_PROVISIONAL;
	else if (p->kind == PACKET_OPEN)
		embryo.flow.state = first_state(p);
	else
		return REASON_NO_FLOW;
	embryo.flow.flags = FLOW_LOCAL_ORIGIN;
	embryo.flow.vm = vm;
	embryo.flow.last_seen = p->now;
	if (ctl->vm_cells)
		reply_transparent(skb, p, in, &embryo.flow);
	return embryo_insert(p, &embryo) ? REASON_LOCAL_ORIGIN : REASON_ERROR;
}

static __always_inline int reply_of_local_origin(struct __sk_buff *skb, struct flow *flow,
						 const struct embryo *embryo,
						 const struct packet *p, const struct interface *in,
						 const struct control *ctl, __u32 vm,
						 struct decision *d)
{
	__u8 proto = packet_proto(p);
	struct flow fresh = {};

	if (p->kind == PACKET_ERROR)
		return REASON_LOCAL_ORIGIN;
	/* A new connection with an old five-tuple, perhaps by another VM that has the address now.
	 */
	if (p->kind == PACKET_OPEN && (proto == IPPROTO_TCP || proto == IPPROTO_SCTP) &&
	    flow->state != FLOW_SYN) {
		fresh.flags = FLOW_LOCAL_ORIGIN;
		fresh.vm = vm;
		if (ctl->vm_cells)
			reply_transparent(skb, p, in, &fresh);
		flow->flags = fresh.flags;
		flow_set_state(flow, FLOW_SYN, p, embryo);
		flow->vm = fresh.vm;
	}
	if (flow->state == FLOW_PROVISIONAL) {
		if (!(flow->flags & FLOW_ANSWERED))
			flow_touch(flow, p->now);
	} else {
		flow_touch(flow, p->now);
		if (proto == IPPROTO_TCP || proto == IPPROTO_SCTP) {
			flow_close(flow, p, embryo, true);
			if (p->kind == PACKET_DATA && (flow->flags & FLOW_ANSWERED) &&
			    flow->state == FLOW_SYN) {
				flow_set_state(flow, FLOW_ESTABLISHED, p, embryo);
				decision_flow(d, flow);
				/* Proven as well: a flood must not make us forget who opened it. */
				if (embryo && !flow_promote(p, flow))
					return REASON_ERROR;
				return REASON_LOCAL_ORIGIN;
			}
		}
	}
	decision_flow(d, flow);
	return REASON_LOCAL_ORIGIN;
}

static __always_inline void flow_advance_reply(struct flow *flow, struct embryo *embryo,
					       const struct packet *p)
{
	__u8 proto = packet_proto(p);

	flow_touch(flow, p->now);
	if (p->kind == PACKET_FRAGMENT)
		return;
	if (proto == IPPROTO_TCP && embryo && p->kind != PACKET_ABORT) {
		if (p->kind == PACKET_ANSWER) {
			embryo->vm_isn = p->seq;
			embryo->vm_next = p->seq_end;
		} else if (embryo->vm_next != embryo->vm_isn &&
			   (__s32)(p->seq_end - embryo->vm_next) > 0) {
			embryo->vm_next = p->seq_end;
		}
	}
	if (proto == IPPROTO_TCP || proto == IPPROTO_SCTP)
		flow_close(flow, p, embryo, true);
	if (p->kind == PACKET_ABORT)
		return;
	switch (flow->state) {
	case FLOW_NEW:
		flow_set_state(flow, FLOW_REPLIED, p, embryo);
		break;
	case FLOW_SYN:
		if (p->kind == PACKET_ANSWER)
			flow_set_state(flow, FLOW_SYN_ACK, p, embryo);
		else if (!embryo && p->kind == PACKET_DATA)
			/* A stray SYN on a live connection: the VM goes on with the old one. */
			flow_set_state(flow, FLOW_ESTABLISHED, p, embryo);
		break;
	}
}

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

static __always_inline int reply(struct __sk_buff *skb, const struct packet *p,
				 const struct interface *in, const struct control *ctl, __u32 vm,
				 struct decision *d)
{
	struct embryo *embryo = NULL;
	struct last_hop_stats *stats;
	struct last_hop *record;
	struct flow *flow;
	__u32 used = 0;
	int why;

	if ((in->flags & INTERFACE_EXCLUDES) && is_excluded(p, in))
		return REASON_EXCLUDED;
	flow = flow_find(p);
	if (!flow) {
		embryo = embryo_find(p);
		if (!embryo && ctl->migrating && flow_take_over(p)) {
			flow = flow_find(p);
			embryo = flow ? NULL : embryo_find(p);
		}
		if (!embryo && !flow)
			return p->kind == PACKET_ERROR ? REASON_NO_FLOW
						       : reply_local_origin(skb, p, in, ctl, vm);
		if (embryo)
			flow = &embryo->flow;
	}
	if (flow->flags & FLOW_LOCAL_ORIGIN)
		return reply_of_local_origin(skb, flow, embryo, p, in, ctl, vm, d);
	if (!flow->vm && p->kind != PACKET_ERROR)
		__sync_val_compare_and_swap(&flow->vm, 0, vm);
	if (flow->vm && flow->vm != vm && !vm_answers_for(flow->vm, vm))
		return REASON_VM_MISMATCH;
	if ((flow->flags & FLOW_SERVICE) && p->kind != PACKET_ERROR)
		flow_set_flag(flow, FLOW_ANSWERED);
	if (p->kind != PACKET_ERROR)
		flow_advance_reply(flow, embryo, p);
	decision_flow(d, flow);
	record = reply_last_hop(flow->last_hop, &used, &why);
	if (!record) {
		if (why == REASON_DEVICE_DROP && in->policy == POLICY_OBSERVE)
			return REASON_OBSERVE_CHANGE;
		return why;
	}
	stats = bpf_map_lookup_elem(&last_hop_stats, &used);
	if (!stats)
		return REASON_ERROR;
	return reply_send(skb, p, in, record, stats, d);
}

#endif
