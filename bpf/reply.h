/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Tap: send a VM's reply back to where its request came from. */
#ifndef LASTHOP_REPLY_H
#define LASTHOP_REPLY_H

#include "count.h"
#include "exclude.h"
#include "fib.h"
#include "frame.h"
#include "key.h"
#include "last_hop.h"
#include "learn.h"
#include "maps.h"
#include "reply_send.h"
#include "service.h"
#include "vm.h"

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
