/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Uplink: hands a frame to its flow's VM at layer 2, whoever it is addressed to. What becomes of it
 * if that VM is down, the service says.
 */
#ifndef LASTHOP_DELIVER_H
#define LASTHOP_DELIVER_H

#include <linux/if_ether.h>
#include "frame.h"
#include "interface.h"
#include "key.h"
#include "service.h"
#include "vm.h"

/* Where the frame goes. */
struct delivery {
	__u32 ifindex;
	__u32 cell;
	__u8 mac[6];
	__u8 flags; /* enum vm_flag */
	__u8 gone;  /* the tap of the flow's VM */
};

/*
 * PARSED if the frame may be handed to a VM. One that is addressed to somebody else is in transit,
 * and what comes in by a bridge port that does not forward comes another way as well. Only the
 * answer to what a VM forwarded may be addressed to anybody.
 */
static __always_inline int delivery_allowed(const struct packet *p, const struct interface *in,
					    const struct decision *d)
{
	if (in->flags & INTERFACE_PORT_BLOCKED)
		return REASON_PORT_BLOCKED;
	if ((d->flags & FLOW_LOCAL_ORIGIN) || is_for_host_mac(p, in) ||
	    !vm_is_missed(p, d->deliver) || vm_id(in->zone, p->destination))
		return PARSED;
	return REASON_NOT_FOR_VM;
}

static __always_inline void delivery_count(const struct packet *p, __u32 cell,
					   const struct decision *d)
{
	struct vm_stats *stats = bpf_map_lookup_elem(&vm_stats, &cell);

	if (!stats)
		return;
	if (d->flags & FLOW_LOCAL_ORIGIN) {
		stats->response_packets++;
		stats->response_bytes += p->length_bytes;
	} else {
		stats->request_packets++;
		stats->request_bytes += p->length_bytes;
	}
	stats->last_seen = p->now;
}

/* False if the VM has no tap, or is not alive though it should be. */
static __always_inline bool delivery_fill(struct delivery *to, const struct decision *d, bool alive)
{
	__u32 number = vm_cell_number(d->deliver);
	struct vm_cell *cell = bpf_map_lookup_elem(&vm_cells, &number);

	if (!cell || to->gone || (alive && !vm_is_alive(cell)))
		return false;
	to->ifindex = READ_ONCE(cell->ifindex);
	if (!to->ifindex)
		return false;
	mac_copy(to->mac, cell->mac);
	to->flags = cell->flags;
	to->cell = number;
	return true;
}

/*
 * Gives the flow to another VM, which has counted it already. Linux 6.1 takes no key out of the
 * argument of a global function, so they are copied.
 */
__noinline int flow_give(const struct packet *p, __u32 vm)
{
	struct embryo *embryo = NULL;
	struct flow4_key key4;
	struct flow6_key key6;
	struct flow *flow;

	if (!p)
		return false;
	if (p->family == 4) {
		key4 = p->key4;
		flow = bpf_map_lookup_elem(&flows4, &key4);
		KEEP_APART(4);
		embryo = flow ? NULL : bpf_map_lookup_elem(&embryos4, &key4);
	} else {
		key6 = p->key6;
		flow = bpf_map_lookup_elem(&flows6, &key6);
		KEEP_APART(5);
		embryo = flow ? NULL : bpf_map_lookup_elem(&embryos6, &key6);
	}
	if (embryo)
		flow = &embryo->flow;
	if (!flow) {
		vm_count_flows(vm, -1);
		return false;
	}
	/* Closed flows count for nobody. */
	vm_count_flows(flow->state == FLOW_CLOSED ? vm : flow->vm, -1);
	WRITE_ONCE(flow->vm, vm);
	return true;
}

/* The flow's VM is down: PARSED with another place to go, or a reason. */
__noinline int delivery_without(const struct packet *p, struct decision *d, struct delivery *to)
{
	struct service_stats *stats;
	struct service *service;
	__u32 index;

	if (!p || !d || !to)
		return REASON_ERROR;
	index = service_find(p);
	service = bpf_map_lookup_elem(&services, &index);
	stats = service_stats_of(index);
	/* A service that was removed leaves its flows where they are, and has no say any more. */
	if (!index || !service)
		return delivery_fill(to, d, false) ? PARSED : REASON_NOT_FOR_VM;
	if (service->on_vm_down == ON_VM_DOWN_HOLD) {
		if (delivery_fill(to, d, false))
			return PARSED;
		bump(stats, held);
		return REASON_VM_HELD;
	}
	if (service->on_vm_down == ON_VM_DOWN_RESET && packet_proto(p) == IPPROTO_TCP &&
	    p->kind != PACKET_OPEN)
		return REASON_VM_RESET;
	d->deliver = service_choose(p, index);
	if (!d->deliver || !flow_give(p, d->deliver))
		return REASON_SERVICE_EMPTY;
	bump(stats, rebalanced);
	to->gone = false;
	return delivery_fill(to, d, true) ? PARSED : REASON_VM_HELD;
}

/* PARSED with where it goes, or a reason. */
static __always_inline int delivery_find(const struct packet *p, struct decision *d,
					 struct delivery *to)
{
	if (delivery_fill(to, d, true))
		return PARSED;
	/* No service has a say in what a VM opened. */
	if (d->flags & FLOW_LOCAL_ORIGIN)
		return REASON_ANSWER;
	return delivery_without(p, d, to);
}

static __always_inline void delivered(const struct packet *p, struct decision *d,
				      const struct delivery *to)
{
	delivery_count(p, to->cell, d);
	d->verdict = VERDICT_REDIRECT;
	d->out_ifindex = to->ifindex;
	mac_copy(d->out_mac, to->mac);
}

/* What is learned or changed is told as such; all else that is delivered is no more than that. */
static __always_inline int delivered_reason(int reason)
{
	switch (reason) {
	case REASON_LEARN:
	case REASON_RELEARN:
	case REASON_PROMOTE:
	case REASON_RESTART:
	case REASON_RELEARN_OFF:
	case REASON_RELEARN_DAMPED:
	case REASON_UNKNOWN_DEVICE:
	case REASON_LAST_HOP_BUDGET:
		return reason;
	}
	return REASON_DELIVER;
}

/* Ethernet in front of a packet that came without. */
static __always_inline bool deliver_head(struct __sk_buff *skb, const struct packet *p,
					 __u32 ifindex)
{
	struct interface *tap = interface_find(ifindex);
	struct ethhdr *eth;

	if (!tap || (p->l3_offset < ETH_HLEN && bpf_skb_change_head(skb, ETH_HLEN, 0)))
		return false;
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return false;
	mac_copy(eth->h_source, tap->host_mac);
	eth->h_proto = bpf_htons(p->family == 4 ? ETH_P_IP : ETH_P_IPV6);
	return true;
}

/* The reason; the decision says where to. A reset is left to the caller: there is not stack enough
 * for it here. VMs get their frames without tags. */
__noinline int deliver_skb(struct __sk_buff *skb, const struct packet *p, struct decision *d,
			   int reason)
{
	struct delivery to = {};
	struct interface *in;
	struct ethhdr *eth;
	int rc;

	if (!p || !d)
		return REASON_ERROR;
	in = interface_find(p->ifindex);
	if (!in || p->label_count)
		return REASON_DELIVER_HOOK;
	rc = delivery_allowed(p, in, d);
	if (rc != PARSED)
		return rc;
	to.gone = vm_tap_is_gone(d->deliver, p->now);
	rc = delivery_find(p, d, &to);
	if (rc != PARSED)
		return rc;
	if ((p->tag_count > 0 && bpf_skb_vlan_pop(skb)) ||
	    (p->tag_count > 1 && bpf_skb_vlan_pop(skb)))
		return REASON_ERROR;
	if (p->no_link_layer && !deliver_head(skb, p, to.ifindex))
		return REASON_ERROR;
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return REASON_ERROR;
	mac_copy(eth->h_dest, to.mac);
	delivered(p, d, &to);
	return delivered_reason(reason);
}

/* Generic XDP comes after GRO, and the kernel drops what it redirects and does not fit as it is. */
static __always_inline bool delivery_fits(const struct packet *p, const struct interface *in,
					  const struct delivery *to)
{
	struct interface *tap;

	if (in->hook != HOOK_XDP_GENERIC)
		return true;
	tap = interface_find(to->ifindex);
	return tap && (!tap->mtu || p->length_bytes - p->l3_offset <= tap->mtu);
}

/*
 * The same. From native XDP not every tap can be reached, nor from generic XDP with any frame. On a
 * bridged host the bridge can.
 */
__noinline int deliver_xdp(struct xdp_md *ctx, const struct packet *p, struct decision *d,
			   int reason)
{
	struct delivery to = {};
	struct interface *in;
	struct ethhdr *eth;
	bool fits;
	int rc;

	if (!p || !d)
		return REASON_ERROR;
	in = interface_find(p->ifindex);
	if (!in || p->label_count || p->tag_count)
		return REASON_DELIVER_HOOK;
	rc = delivery_allowed(p, in, d);
	if (rc != PARSED)
		return rc;
	rc = delivery_find(p, d, &to);
	if (rc != PARSED)
		return rc;
	if (in->hook != HOOK_XDP_GENERIC && !(to.flags & VM_XDP))
		return REASON_DELIVER_HOOK;
	fits = delivery_fits(p, in, &to);
	if (!fits && in->l3_ifindex == p->ifindex)
		return REASON_DELIVER_HOOK;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return REASON_ERROR;
	mac_copy(eth->h_dest, to.mac);
	delivered(p, d, &to);
	if (!fits)
		d->verdict = VERDICT_PASS;
	return delivered_reason(reason);
}

#endif
