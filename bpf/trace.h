/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Every decision on the flows that somebody watches. Costs one read while nobody does. */
#ifndef LASTHOP_TRACE_H
#define LASTHOP_TRACE_H

#include "frame.h"
#include "maps.h"

__noinline int trace_decision(const struct packet *p, const struct interface *in,
			      const struct decision *d, int reason)
{
	struct flow6_key key = {};
	__u32 zero = 0, *number;
	struct allocations *given;
	struct event *event;

	if (!p || !in || !d)
		return 0;
	if (p->family == 4) {
		key.local[10] = key.local[11] = key.remote[10] = key.remote[11] = 0xff;
		__builtin_memcpy(key.local + 12, &p->key4.local, 4);
		__builtin_memcpy(key.remote + 12, &p->key4.remote, 4);
		key.local_port = p->key4.local_port;
		key.remote_port = p->key4.remote_port;
		key.zone = p->key4.zone;
		key.proto = p->key4.proto;
	} else if (p->family == 6) {
		key = p->key6;
	} else {
		return 0;
	}
	number = bpf_map_lookup_elem(&traces, &key);
	if (!number)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		given = bpf_map_lookup_elem(&allocations, &zero);
		if (given)
			__sync_fetch_and_add(&given->trace_lost, 1);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time_ns = bpf_ktime_get_ns();
	event->key = key;
	event->trace = *number;
	event->ifindex = p->ifindex;
	event->out_ifindex = d->out_ifindex;
	event->last_hop = d->last_hop;
	event->length_bytes = p->length_bytes;
	event->kind = EVENT_TRACE;
	event->reason = reason;
	event->verdict = d->verdict;
	event->role = in->role;
	event->hook = in->hook;
	event->state = d->state;
	event->flags = d->flags;
	event->tcp_flags = p->tcp_flags;
	__builtin_memcpy(event->destination_mac, p->destination, 6);
	__builtin_memcpy(event->out_mac, d->out_ifindex ? d->out_mac : p->destination, 6);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

#endif
