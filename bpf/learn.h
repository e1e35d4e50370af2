/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Uplink: remember where requests come from. Nothing here stops a packet, or changes one. */
#ifndef LASTHOP_LEARN_H
#define LASTHOP_LEARN_H

#include "count.h"
#include "exclude.h"
#include "fib.h"
#include "frame.h"
#include "interface.h"
#include "key.h"
#include "last_hop.h"
#include "maps.h"
#include "notice.h"
#include "service.h"
#include "transport.h"
#include "vm.h"

/*
 * Routed host: the frame is for the host's MAC. It is for a VM if the kernel would forward it to an
 * attached tap, to the bridge of one, or to the MAC of a known VM.
 */
static __noinline int learn_routed(void *ctx, const struct packet *p, const struct interface *in,
				   __u32 *vm)
{
	struct bpf_fib_lookup fib = {};
	struct interface *out;
	long rc;

	fib_ask(&fib, p, in, true);
	rc = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (rc == BPF_FIB_LKUP_RET_NOT_FWDED)
		return REASON_FOR_HOST;
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return REASON_NOT_FOR_VM;
	if (rc == BPF_FIB_LKUP_RET_SUCCESS) {
		*vm = vm_id(in->zone, fib.dmac);
		if (*vm)
			return PARSED;
	}
	out = bpf_map_lookup_elem(&interfaces, &fib.ifindex);
	if (out && (out->role == ROLE_BRIDGE || (out->role == ROLE_TAP && out->zone == in->zone)))
		return PARSED;
	return REASON_NOT_FOR_VM;
}

/*
 * PARSED if a flow may be learned from this packet, else why not. `target` is the id of
 * the VM that has the destination MAC; `vm` becomes it, 0 if only its first reply will tell. Of a
 * service's flow the host's routing need not know the way.
 */
static __always_inline int learn_allowed(void *ctx, const struct packet *p,
					 const struct interface *in, __u32 target, bool served,
					 __u32 *vm)
{
	*vm = target;
	/* No bridge, no MACs: the host routes what comes from here. */
	if (p->no_link_layer)
		return served ? PARSED : learn_routed(ctx, p, in, vm);
	if (in->flags & INTERFACE_PORT_BLOCKED)
		return REASON_PORT_BLOCKED;
	if (!source_is_other(p, in))
		return REASON_SOURCE_MAC;
	if (vm_id(in->zone, p->source))
		return REASON_SOURCE_VM;
	if (target)
		return PARSED;
	if (!is_for_host_mac(p, in))
		return REASON_NOT_FOR_VM;
	return served ? PARSED : learn_routed(ctx, p, in, vm);
}

/* Answers, aborts, errors and later fragments neither create a flow nor move one. */
static __always_inline bool is_request(const struct packet *p)
{
	return p->kind == PACKET_DATA || p->kind == PACKET_OPEN;
}

static __always_inline __u8 first_state(const struct packet *p)
{
	__u8 proto = packet_proto(p);

	if (p->kind == PACKET_OPEN && (proto == IPPROTO_TCP || proto == IPPROTO_SCTP))
		return FLOW_SYN;
	return FLOW_NEW;
}

/* In the middle of a connection that has a beginning. */
static __always_inline bool is_pickup(const struct packet *p)
{
	__u8 proto = packet_proto(p);

	return p->kind != PACKET_OPEN && (proto == IPPROTO_TCP || proto == IPPROTO_SCTP);
}

static __always_inline void decision_flow(struct decision *d, const struct flow *flow)
{
	d->last_hop = flow->last_hop;
	d->state = flow->state;
	d->flags = flow->flags;
}

/* Of the service that a new flow belongs to, 0 for none. */
static __always_inline __u32 service_of(const struct packet *p, const struct control *ctl)
{
	return ctl->vm_cells ? service_find(p) : 0;
}

static __always_inline int learn_new(void *ctx, const struct packet *p, const struct interface *in,
				     const struct control *ctl, __u32 target, struct decision *d)
{
	struct embryo embryo = {};
	__u32 vm, reference, service;
	int why;

	if (!is_request(p))
		return REASON_NOT_REQUEST;
	service = service_of(p, ctl);
	why = learn_allowed(ctx, p, in, target, service, &vm);
	if (why != PARSED)
		return why;
	if (is_pickup(p)) {
		if (in->flags & INTERFACE_PICKUP_NO)
			return REASON_PICKUP_OFF;
		/* Of a flow that is still to be copied from other tables, and has a VM: its sender
		 * repeats it. */
		if (service && ctl->migrating)
			return REASON_VM_HELD;
		embryo.flow.flags = FLOW_PICKUP;
	}
	reference = last_hop_learn(p, in, &why);
	if (!reference)
		return why;
	if (service) {
		d->deliver = service_choose(p, service);
		if (!d->deliver)
			return REASON_SERVICE_EMPTY;
		embryo.flow.flags |= FLOW_SERVICE;
		embryo.flow.vm = d->deliver;
	}
	embryo.flow.last_hop = reference;
	embryo.flow.last_seen = p->now;
	embryo.flow.state = first_state(p);
	if (!embryo_insert(p, &embryo))
		return REASON_ERROR;
	count_request(reference & LAST_HOP_INDEX_MASK, p);
	decision_flow(d, &embryo.flow);
	return REASON_LEARN;
}

/*
 * The VM for a service's flow that begins again. One that seemed to be the VM's own was perhaps
 * lost: it goes on with the VM that spoke.
 */
static __always_inline __u32 restart_vm(const struct flow *flow, const struct packet *p,
					__u32 service)
{
	__u32 vm = flow->vm;

	if (!(flow->flags & FLOW_LOCAL_ORIGIN) || packet_proto(p) != IPPROTO_UDP ||
	    vm_cell_number(vm) == VMS_MAX)
		return service_choose(p, service);
	vm_count_flows(vm, 1);
	return vm;
}

/*
 * A new connection with an old five-tuple, or a flow whose provisional life is over: as if learned
 * anew, in its place. Written field by field; a reply in between goes by either the old or the new.
 */
static __always_inline int learn_restart(void *ctx, struct flow *flow, struct embryo *embryo,
					 const struct packet *p, const struct interface *in,
					 const struct control *ctl, struct decision *d)
{
	__u32 vm, reference, service = service_of(p, ctl);
	int why;

	why = learn_allowed(ctx, p, in, vm_id(in->zone, p->destination), service, &vm);
	if (why != PARSED)
		return why;
	reference = last_hop_learn(p, in, &why);
	if (!reference)
		return why;
	d->deliver = service ? restart_vm(flow, p, service) : 0;
	if (service && !d->deliver)
		return REASON_SERVICE_EMPTY;
	if (embryo)
		embryo->vm_next = embryo->vm_isn;
	if (flow_served_vm(flow) && flow->state != FLOW_CLOSED)
		vm_count_flows(flow->vm, -1);
	flow->vm = d->deliver;
	flow->flags = 0;
	flow->moved = 0;
	flow_set_state(flow, first_state(p), p, embryo);
	if (service)
		flow->flags = FLOW_SERVICE;
	flow->last_seen = p->now;
	WRITE_ONCE(flow->last_hop, reference);
	count_request(reference & LAST_HOP_INDEX_MASK, p);
	decision_flow(d, flow);
	return REASON_RESTART;
}

static __always_inline bool flow_is_damped(const struct flow *flow, __u32 now,
					   const struct control *ctl)
{
	return flow->moved && ctl->relearn_damping &&
	       (__u16)(now - flow->moved) < ctl->relearn_damping;
}

static __always_inline int learn_move(void *ctx, struct flow *flow, const struct packet *p,
				      const struct interface *in, const struct control *ctl)
{
	__u32 vm, reference, index = flow->last_hop & LAST_HOP_INDEX_MASK;
	int why;

	bool served = flow->flags & FLOW_SERVICE;

	why = learn_allowed(ctx, p, in, vm_id(in->zone, p->destination), served, &vm);
	if (why != PARSED)
		return why;
	if (flow->vm && vm && flow->vm != vm && !served)
		return REASON_OTHER_VM;
	/* Never means: from a record that still stands. */
	if ((in->flags & INTERFACE_RELEARN_NEVER) && last_hop_reference_of(index) == flow->last_hop)
		return REASON_RELEARN_OFF;
	/* Two MACs that take turns would otherwise take the flow with them at each packet. */
	if (flow_is_damped(flow, p->now, ctl)) {
		notice(NOTICE_RELEARN_DAMPED, p, 0);
		return REASON_RELEARN_DAMPED;
	}
	reference = last_hop_learn(p, in, &why);
	if (!reference)
		return why;
	WRITE_ONCE(flow->last_hop, reference);
	flow->moved = p->now ? p->now : 1;
	count_relearn(reference & LAST_HOP_INDEX_MASK);
	return REASON_RELEARN;
}

/* The VM opened this one: the remote side only answers. */
static __always_inline int learn_answer(void *ctx, struct flow *flow, struct embryo *embryo,
					const struct packet *p, const struct interface *in,
					const struct control *ctl, struct decision *d)
{
	__u8 proto = packet_proto(p);

	if (p->kind == PACKET_OPEN && (proto == IPPROTO_TCP || proto == IPPROTO_SCTP))
		return learn_restart(ctx, flow, embryo, p, in, ctl, d);
	if ((flow->flags & FLOW_TRANSPARENT) && vm_is_missed(p, flow->vm))
		d->deliver = flow->vm;
	if (flow->state == FLOW_PROVISIONAL && d->deliver) {
		/* Answers to another's address prove who began. */
		flow_set_flag(flow, FLOW_ANSWERED);
		flow_touch(flow, p->now);
		flow_set_state(flow, FLOW_ESTABLISHED, p, embryo);
		decision_flow(d, flow);
		return embryo && !flow_promote(p, flow) ? REASON_ERROR : REASON_ANSWER;
	}
	if (flow->state == FLOW_PROVISIONAL) {
		/*
		 * UDP does not say who began, unless it is for a service. This may be a flow that
		 * was lost: neither these packets nor, once there was one, the VM's renew it, so it
		 * heals soon.
		 */
		if (is_request(p) &&
		    (p->now - flow->last_seen >= ctl->timeouts[TIMEOUT_UDP_PROVISIONAL] ||
		     service_of(p, ctl)))
			return learn_restart(ctx, flow, embryo, p, in, ctl, d);
		flow_set_flag(flow, FLOW_ANSWERED);
	} else {
		flow_set_flag(flow, FLOW_ANSWERED);
		flow_touch(flow, p->now);
		if (proto == IPPROTO_TCP || proto == IPPROTO_SCTP)
			flow_close(flow, p, embryo, false);
	}
	decision_flow(d, flow);
	return REASON_ANSWER;
}

/*
 * Does this request prove the embryo? States do not count here: a blind RST may have changed them.
 * vm_next differs from vm_isn once the VM's SYN-ACK was seen.
 */
static __always_inline bool embryo_is_proven(const struct embryo *e, const struct packet *p)
{
	if (p->kind == PACKET_ABORT || p->kind == PACKET_ANSWER)
		return false;
	if (packet_proto(p) == IPPROTO_TCP && !(e->flow.flags & FLOW_PICKUP))
		/* It acknowledges the SYN-ACK, and nothing that the VM has not sent. */
		return e->vm_next != e->vm_isn && p->kind == PACKET_DATA &&
		       (p->tcp_flags & TCP_ACK) &&
		       p->ack - (e->vm_isn + 1) <= e->vm_next - (e->vm_isn + 1);
	if (e->flow.flags & FLOW_SERVICE)
		return (e->flow.flags & FLOW_ANSWERED) && !flow_is_finished(&e->flow);
	return e->flow.vm && !flow_is_finished(&e->flow);
}

/* Is this SYN a new connection, or the last one's repeated? */
static __always_inline bool is_reopening(const struct flow *flow, const struct packet *p)
{
	__u8 proto = packet_proto(p);

	if (p->kind != PACKET_OPEN || (proto != IPPROTO_TCP && proto != IPPROTO_SCTP))
		return false;
	return flow->state != FLOW_SYN && flow->state != FLOW_SYN_ACK;
}

static __always_inline void flow_advance_request(struct flow *flow, const struct packet *p,
						 bool embryonic)
{
	flow_touch(flow, p->now);
	if (packet_proto(p) == IPPROTO_TCP || packet_proto(p) == IPPROTO_SCTP) {
		flow_close(flow, p, embryonic, false);
		if (!embryonic && p->kind == PACKET_DATA && flow->state == FLOW_SYN_ACK)
			flow_set_state(flow, FLOW_ESTABLISHED, p, embryonic);
	}
}

/* A request of a flow that stays where it is, for one of these reasons, is still for its VM. */
static __always_inline bool is_still_delivered(int why)
{
	return why == REASON_RELEARN || why == REASON_RELEARN_OFF || why == REASON_RELEARN_DAMPED ||
	       why == REASON_UNKNOWN_DEVICE || why == REASON_LAST_HOP_BUDGET;
}

static __always_inline int learn_known(void *ctx, struct flow *flow, struct embryo *embryo,
				       const struct packet *p, const struct interface *in,
				       const struct control *ctl, struct decision *d)
{
	int why = REASON_REFRESH;
	__u32 vm, successor = 0;
	bool proven, same;

	if ((in->flags & INTERFACE_LOWER) && last_hop_is_below(flow->last_hop, p, in)) {
		/* Whence its VM could not be reached, or the packet would not be here. */
		d->deliver = flow_served_vm(flow);
		return REASON_LEARNED_BELOW;
	}
	if (is_reopening(flow, p))
		return learn_restart(ctx, flow, embryo, p, in, ctl, d);
	same = last_hop_is_source(flow->last_hop, p);
	if (!same) {
		successor = last_hop_successor(flow->last_hop, p);
		if (successor)
			WRITE_ONCE(flow->last_hop, successor);
	}
	if (!same && !successor) {
		if (!is_request(p)) {
			if (is_for_host_mac(p, in) || vm_id(in->zone, p->destination))
				d->deliver = flow_served_vm(flow);
			return REASON_NOT_REQUEST;
		}
		if (p->kind == PACKET_OPEN && packet_proto(p) != IPPROTO_ICMP &&
		    packet_proto(p) != IPPROTO_ICMPV6)
			return learn_restart(ctx, flow, embryo, p, in, ctl, d);
		why = learn_move(ctx, flow, p, in, ctl);
		if (is_still_delivered(why))
			d->deliver = flow_served_vm(flow);
		if (why != REASON_RELEARN)
			return why;
	} else if (p->kind == PACKET_OPEN && flow->vm && flow->state <= FLOW_SYN_ACK &&
		   !(flow->flags & FLOW_SERVICE)) {
		/* The handshake begins again with another VM. */
		if (learn_allowed(ctx, p, in, vm_id(in->zone, p->destination), false, &vm) ==
			    PARSED &&
		    vm && vm != flow->vm)
			return packet_proto(p) == IPPROTO_TCP || packet_proto(p) == IPPROTO_SCTP
				       ? learn_restart(ctx, flow, embryo, p, in, ctl, d)
				       : REASON_OTHER_VM;
	}
	d->deliver = flow_served_vm(flow);
	count_request(flow->last_hop & LAST_HOP_INDEX_MASK, p);
	proven = embryo && embryo_is_proven(embryo, p);
	flow_advance_request(flow, p, embryo);
	if (proven)
		flow_set_state(flow, flow_open_state(flow), p, embryo);
	decision_flow(d, flow);
	if (!proven)
		return why;
	if (!flow_promote(p, flow))
		return REASON_ERROR;
	return why == REASON_REFRESH ? REASON_PROMOTE : why;
}

/* The reason; the verdict is always pass. */
static __always_inline int learn(void *ctx, const struct packet *p, const struct interface *in,
				 const struct control *ctl, struct decision *d)
{
	struct embryo *embryo = NULL;
	struct flow *flow = flow_find(p);
	__u32 target;
	bool mine;

	if ((in->flags & INTERFACE_EXCLUDES) && is_excluded(p, in))
		return REASON_EXCLUDED;
	if (!flow) {
		/* Most that misses is for nobody here: say so before looking further. */
		target = vm_id(in->zone, p->destination);
		mine = target || is_for_host_mac(p, in);
		if (!mine && !ctl->vm_cells)
			return REASON_NOT_FOR_VM;
		embryo = embryo_find(p);
		if (!embryo && ctl->migrating && flow_take_over(p)) {
			flow = flow_find(p);
			embryo = flow ? NULL : embryo_find(p);
		}
		if (embryo)
			flow = &embryo->flow;
		/* The answer to what a VM forwarded is addressed to anybody. */
		if (!mine && !(flow && (flow->flags & FLOW_TRANSPARENT)))
			return REASON_NOT_FOR_VM;
		if (!flow)
			return learn_new(ctx, p, in, ctl, target, d);
	}
	if (p->kind == PACKET_ERROR) {
		decision_flow(d, flow);
		d->deliver = flow_served_vm(flow);
		if ((flow->flags & FLOW_TRANSPARENT) && vm_is_missed(p, flow->vm))
			d->deliver = flow->vm;
		return REASON_QUOTED;
	}
	if (flow->flags & FLOW_LOCAL_ORIGIN)
		return learn_answer(ctx, flow, embryo, p, in, ctl, d);
	return learn_known(ctx, flow, embryo, p, in, ctl, d);
}

/* Only a SYN that was learned has a way back that is known. */
static __always_inline bool is_learned_anew(int reason)
{
	return reason == REASON_LEARN || reason == REASON_RELEARN || reason == REASON_RESTART;
}

/*
 * The request that `reason` has just learned from had been decrypted: its reply must not leave in
 * the clear, so its last hop is another one, or none.
 */
static __noinline int learn_decrypted(struct packet *p, const struct interface *in,
				      struct decision *d, int reason)
{
	struct embryo *embryo = NULL;
	struct flow *flow = flow_find(p);
	__u32 reference;
	int why;

	if (!flow) {
		embryo = embryo_find(p);
		if (!embryo)
			return REASON_ERROR;
		flow = &embryo->flow;
	}
	p->encapsulated |= ENCAPSULATION_IPSEC;
	reference = last_hop_learn(p, in, &why);
	WRITE_ONCE(flow->last_hop, reference);
	decision_flow(d, flow);
	return reference ? reason : why;
}

#endif
