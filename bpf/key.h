/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The flow tables behind one key, whatever the family. */
#ifndef LASTHOP_KEY_H
#define LASTHOP_KEY_H

#include <linux/in.h>
#include "count.h"
#include "frame.h"
#include "maps.h"

static __always_inline __u8 packet_proto(const struct packet *p)
{
	return p->family == 4 ? p->key4.proto : p->key6.proto;
}

static __always_inline __u16 packet_zone(const struct packet *p)
{
	return p->family == 4 ? p->key4.zone : p->key6.zone;
}

/*
 * The compiler would make one call of two that differ in the map alone. Then the verifier cannot
 * inline it, and the helper goes through a retpoline: 20 ns.
 */
#define KEEP_APART(number) asm volatile("r1 = " #number ::: "r1")

static __always_inline struct flow *flow_find(const struct packet *p)
{
	struct flow *flow;

	if (p->family == 4) {
		flow = bpf_map_lookup_elem(&flows4, &p->key4);
		KEEP_APART(0);
	} else {
		flow = bpf_map_lookup_elem(&flows6, &p->key6);
		KEEP_APART(1);
	}
	return flow;
}

static __always_inline struct embryo *embryo_find(const struct packet *p)
{
	struct embryo *embryo;

	if (p->family == 4) {
		embryo = bpf_map_lookup_elem(&embryos4, &p->key4);
		KEEP_APART(2);
	} else {
		embryo = bpf_map_lookup_elem(&embryos6, &p->key6);
		KEEP_APART(3);
	}
	return embryo;
}

static __always_inline __u32 table_of(const struct packet *p, bool embryonic)
{
	if (embryonic)
		return p->family == 4 ? TABLE_EMBRYOS4 : TABLE_EMBRYOS6;
	return p->family == 4 ? TABLE_FLOWS4 : TABLE_FLOWS6;
}

#define EEXIST 17

/* 0, or a negative errno. */
static __always_inline long embryo_put(const struct packet *p, const struct embryo *e)
{
	if (p->family == 4)
		return bpf_map_update_elem(&embryos4, &p->key4, e, BPF_NOEXIST);
	return bpf_map_update_elem(&embryos6, &p->key6, e, BPF_NOEXIST);
}

static __always_inline long flow_put(const struct packet *p, const struct flow *flow)
{
	if (p->family == 4)
		return bpf_map_update_elem(&flows4, &p->key4, flow, BPF_NOEXIST);
	return bpf_map_update_elem(&flows6, &p->key6, flow, BPF_NOEXIST);
}

/* False on any error but that another CPU was first, which is as good. */
static __always_inline bool embryo_insert(const struct packet *p, const struct embryo *e)
{
	long rc = embryo_put(p, e);

	if (!rc)
		count_entered(table_of(p, true), e->flow.state);
	return !rc || rc == -EEXIST;
}

static __always_inline bool flow_insert(const struct packet *p, const struct flow *flow)
{
	long rc = flow_put(p, flow);

	if (!rc)
		count_entered(table_of(p, false), flow->state);
	return !rc || rc == -EEXIST;
}

/*
 * Moves a proven embryo. The value is copied first: after the insert the embryo may be evicted and
 * its memory be another's. What another CPU writes to the embryo in between is lost, and is made
 * good by its next packet.
 */
static __always_inline bool flow_promote(const struct packet *p, const struct flow *embryonic)
{
	struct flow flow = *embryonic;
	long rc;

	if (!flow_insert(p, &flow))
		return false;
	if (p->family == 4)
		rc = bpf_map_delete_elem(&embryos4, &p->key4);
	else
		rc = bpf_map_delete_elem(&embryos6, &p->key6);
	if (!rc)
		count_left(table_of(p, true), flow.state);
	return true;
}

/* False if the table before has none. */
static __always_inline bool take_over_from(void *previous, void *table, const void *key)
{
	__u32 zero = 0;
	void *before = bpf_map_lookup_elem(previous, &zero), *value = NULL;

	if (before)
		value = bpf_map_lookup_elem(before, key);
	if (value)
		bpf_map_update_elem(table, key, value, BPF_NOEXIST);
	return value;
}

/*
 * While tables are exchanged: takes a flow over from those before. Returns whether one may be there
 * now. It was counted when it entered the table before. A global function, as it is seldom called;
 * Linux 6.1 takes no key out of the argument of one, so it is copied.
 */
__noinline int flow_take_over(const struct packet *p)
{
	struct flow4_key key4;
	struct flow6_key key6;

	if (!p)
		return 0;
	if (p->family == 4) {
		key4 = p->key4;
		return take_over_from(&previous_flows4, &flows4, &key4) ||
		       take_over_from(&previous_embryos4, &embryos4, &key4);
	}
	key6 = p->key6;
	return take_over_from(&previous_flows6, &flows6, &key6) ||
	       take_over_from(&previous_embryos6, &embryos6, &key6);
}

static __always_inline void flow_touch(struct flow *flow, __u32 now)
{
	if (flow->last_seen != now)
		flow->last_seen = now;
}

/* The VM that a service chose for the flow, 0 for none. */
static __always_inline __u32 flow_served_vm(const struct flow *flow)
{
	return flow->flags & FLOW_SERVICE ? flow->vm : 0;
}

static __always_inline void flow_set_state(struct flow *flow, __u8 state, const struct packet *p,
					   bool embryonic)
{
	__u8 before = flow->state;

	if (before == state)
		return;
	flow->state = state;
	count_transition(table_of(p, embryonic), before, state, flow_served_vm(flow));
}

static __always_inline void flow_set_flag(struct flow *flow, __u8 flags)
{
	if ((flow->flags & flags) != flags)
		flow->flags |= flags;
}

static __always_inline bool flow_is_finished(const struct flow *flow)
{
	const __u8 both = FLOW_FIN_REMOTE | FLOW_FIN_LOCAL;

	return (flow->flags & both) == both;
}

/* The state of a proven TCP flow, as its FINs have it. */
static __always_inline __u8 flow_open_state(const struct flow *flow)
{
	if (flow_is_finished(flow))
		return FLOW_CLOSED;
	return flow->flags & (FLOW_FIN_REMOTE | FLOW_FIN_LOCAL) ? FLOW_HALF_CLOSED
								: FLOW_ESTABLISHED;
}

/*
 * How TCP ends. The VM's own RST is the end of both directions; one from the remote side may be
 * blind, and a VM that goes on sending proves that it was (RFC 5961). Two CPUs may race on state
 * and flags; the worst is a timeout of another state until the next packet.
 */
static __always_inline void flow_close(struct flow *flow, const struct packet *p, bool embryonic,
				       bool reply)
{
	if (p->kind == PACKET_ABORT) {
		if (reply)
			flow_set_flag(flow, FLOW_FIN_REMOTE | FLOW_FIN_LOCAL);
		flow_set_state(flow, FLOW_CLOSED, p, embryonic);
	} else if (p->fin) {
		flow_set_flag(flow, reply ? FLOW_FIN_LOCAL : FLOW_FIN_REMOTE);
		flow_set_state(flow, flow_open_state(flow), p, embryonic);
	} else if (reply && flow->state == FLOW_CLOSED && p->kind == PACKET_DATA) {
		flow_set_state(flow, flow_open_state(flow), p, embryonic);
	}
}

#endif
