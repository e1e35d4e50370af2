/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Counters: each packet once by reason, and once for its last hop. */
#ifndef LASTHOP_COUNT_H
#define LASTHOP_COUNT_H

#include "frame.h"
#include "maps.h"
#include "vm.h"

static __always_inline void count_verdict(__u32 slot, __u32 reason, __u32 length_bytes)
{
	__u32 row = slot * REASONS + reason;
	struct verdict_count *count = bpf_map_lookup_elem(&verdicts, &row);

	if (!count)
		return;
	count->packets++;
	count->bytes += length_bytes;
}

static __always_inline void count_balance(__u32 table, __u32 state, __s64 change)
{
	__u32 row = table * FLOW_STATES + state;
	__u64 *balance = bpf_map_lookup_elem(&flow_balance, &row);

	/* A sweep in process context may be interrupted by a packet on the same CPU. */
	if (balance)
		__sync_fetch_and_add(balance, change);
}

/* Global, so that the verifier looks at it once. */
__noinline int count_entered(__u32 table, __u32 state)
{
	count_balance(table, state, 1);
	return 0;
}

__noinline int count_left(__u32 table, __u32 state)
{
	count_balance(table, state, -1);
	return 0;
}

/* `vm`: whose flow of a service it is, 0 for none. */
__noinline int count_transition(__u32 table, __u32 from, __u32 to, __u32 vm)
{
	count_balance(table, from, -1);
	count_balance(table, to, 1);
	if (vm && from == FLOW_CLOSED)
		vm_count_flows(vm, 1);
	else if (vm && to == FLOW_CLOSED)
		vm_count_flows(vm, -1);
	return 0;
}

static __always_inline void count_request(__u32 index, const struct packet *p)
{
	struct last_hop_stats *stats = bpf_map_lookup_elem(&last_hop_stats, &index);

	if (!stats)
		return;
	stats->request_packets++;
	stats->request_bytes += p->length_bytes;
	stats->last_seen = p->now;
}

static __always_inline void count_reply(struct last_hop_stats *stats, const struct packet *p)
{
	stats->reply_packets++;
	stats->reply_bytes += p->length_bytes;
	stats->last_seen = p->now;
}

static __always_inline void count_relearn(__u32 index)
{
	struct last_hop_stats *stats = bpf_map_lookup_elem(&last_hop_stats, &index);

	if (stats)
		stats->relearns++;
}

#endif
