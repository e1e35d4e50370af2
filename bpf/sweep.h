/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Expiry: a map-element iterator that is read in pieces. Writing a record to the seq file ends a
 * read() after a time budget; the next one goes on where it stopped (kernel/bpf/bpf_iter.c).
 *
 * An entry is deleted when the walk has gone past it: deleting the current one would break the
 * chain that is being walked.
 */
#ifndef LASTHOP_SWEEP_H
#define LASTHOP_SWEEP_H

#include "key.h"
#include "maps.h"

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
} __attribute__((preserve_access_index));

#define SWEEP_CLOCK_EVERY 64 /* entries between two looks at the clock */

static __always_inline __u32 flow_timeout(const struct flow *flow, __u8 proto,
					  const struct control *ctl)
{
	if (flow->state == FLOW_PROVISIONAL)
		return ctl->timeouts[TIMEOUT_UDP_PROVISIONAL];
	switch (proto) {
	case IPPROTO_TCP:
	case IPPROTO_SCTP:
		if (flow->state == FLOW_CLOSED)
			return ctl->timeouts[TIMEOUT_CLOSED];
		if (flow->state < FLOW_ESTABLISHED)
			return ctl->timeouts[TIMEOUT_SYN];
		return ctl->timeouts[proto == IPPROTO_TCP ? TIMEOUT_TCP : TIMEOUT_SCTP];
	case IPPROTO_UDP:
		return ctl->timeouts[TIMEOUT_UDP];
	default:
		return ctl->timeouts[TIMEOUT_ICMP];
	}
}

/* Ticks since it was last seen; a packet may have come after the clock was read. */
static __always_inline __u32 flow_age(const struct flow *flow, __u32 now)
{
	__s32 age = now - flow->last_seen;

	return age < 0 ? 0 : age;
}

static __always_inline bool flow_is_idle(const struct flow *flow, __u8 proto, __u32 now,
					 const struct control *ctl, const struct sweep_control *how)
{
	__u32 limit = how->idle_ticks ? how->idle_ticks : flow_timeout(flow, proto, ctl);

	return flow_age(flow, now) >= limit;
}

/* Number of significant bits of an age in seconds, at most the last bucket. */
static __always_inline __u32 age_bucket(__u32 age_ticks)
{
	__u64 seconds = ((__u64)age_ticks << TICK_SHIFT) / 1000000000;
	__u32 bucket = 0;

#pragma unroll
	for (int i = 0; i < AGE_BUCKETS - 1; i++)
		bucket += seconds >= (1ULL << i);
	return bucket;
}

/* Global, so that the verifier looks at it once. */
__noinline int sweep_served(__u32 vm, __s32 change, __u32 first)
{
	__u32 number = vm_cell_number(vm), *count;

	if (number == VMS_MAX)
		return 0;
	number += first;
	count = bpf_map_lookup_elem(&vm_refs, &number);
	if (count)
		*count += change;
	return 0;
}

/*
 * Open flows of services by VM, and apart from them those whose answers are handed over, and closed
 * ones: their last packets must find the VM, too.
 */
static __always_inline void sweep_vm(const struct flow *flow, __s32 change,
				     const struct sweep_control *how)
{
	__u32 first = how->refs ? VMS_MAX : 0;

	if (!(flow->flags & FLOW_SERVICE) || flow->state == FLOW_CLOSED)
		first += 2 * VMS_MAX;
	sweep_served(flow->vm, change, first);
}

static __always_inline void sweep_reference(const struct flow *flow, __s32 change,
					    const struct sweep_control *how)
{
	__u32 index = flow->last_hop & LAST_HOP_INDEX_MASK, *refs;

	if (flow->flags & (FLOW_SERVICE | FLOW_TRANSPARENT))
		sweep_vm(flow, change, how);
	if (flow->flags & FLOW_LOCAL_ORIGIN)
		return;
	index += how->refs ? LAST_HOPS_MAX : 0;
	refs = bpf_map_lookup_elem(&last_hop_refs, &index);
	if (refs)
		*refs += change;
}

/* Flows by zone. Entries of one zone often follow each other, so its row is kept. */
static __always_inline void sweep_zone(struct sweep_work *work, const struct flow *flow,
				       __u32 table, __u16 zone)
{
	__u32 row, key = zone, *number;
	struct zone_report *report;

	if (work->zone != key + 1) {
		number = bpf_map_lookup_elem(&zones, &key);
		work->zone_number = number ? *number : 0;
		work->zone = key + 1;
	}
	row = (work->zone_number * TABLES + table) * 2;
	report = bpf_map_lookup_elem(&zone_reports, &row);
	if (report && flow->state < FLOW_STATES)
		report->states[flow->state]++;
}

static __always_inline void sweep_count(struct sweep_report *report, const struct flow *flow,
					__u32 age, const struct sweep_control *how)
{
	report->entries++;
	if (flow->state < FLOW_STATES)
		report->states[flow->state]++;
	report->ages[age_bucket(age)]++;
	report->local_origin += !!(flow->flags & FLOW_LOCAL_ORIGIN);
	sweep_reference(flow, 1, how);
}

static __always_inline void sweep_expire(void *map, __u32 table, const void *key,
					 const struct flow *flow, struct sweep_report *report,
					 const struct sweep_control *how)
{
	__u8 state = flow->state;

	/* Also of its VM: vm_flows is set by that when the pass has ended. */
	sweep_reference(flow, -1, how);
	if (bpf_map_delete_elem(map, key))
		return;
	report->expired++;
	count_left(table, state);
}

/* Deletes what was nominated, unless a packet was quicker. */
static __always_inline bool sweep_pending(void *map, __u32 table, struct sweep_work *work,
					  struct sweep_report *report, __u8 proto, __u32 now,
					  const struct control *ctl,
					  const struct sweep_control *how)
{
	struct flow *flow;

	if (!work->pending)
		return false;
	work->pending = 0;
	flow = bpf_map_lookup_elem(map, work->key);
	if (!flow || !flow_is_idle(flow, proto, now, ctl, how))
		return false;
	sweep_expire(map, table, work->key, flow, report, how);
	return true;
}

static __always_inline int sweep_entry(struct bpf_iter__bpf_map_elem *ctx, void *map, __u32 table,
				       __u32 key_bytes)
{
	struct bpf_iter_meta *meta = ctx->meta;
	__u32 zero = 0, now;
	struct sweep_report *report = bpf_map_lookup_elem(&sweep_reports, &table);
	struct sweep_work *work = bpf_map_lookup_elem(&sweep_work, &table);
	struct sweep_control *how = bpf_map_lookup_elem(&sweep_control, &zero);
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);
	struct flow *flow = ctx->value;
	__u8 *key = ctx->key;
	struct sweep_record record;
	bool deleted;
	__u64 ns;

	if (!report || !work || !how || !ctl)
		return 0;
	now = now_ticks(ctl);
	/* Both keys end with proto and a reserved byte. */
	deleted = sweep_pending(map, table, work, report, work->key[(key_bytes - 2) & 63], now, ctl,
				how);
	if (key && flow) {
		work->entries++;
		sweep_count(report, flow, flow_age(flow, now), how);
		sweep_zone(work, flow, table, *(__u16 *)(key + key_bytes - 4));
		if (flow_is_idle(flow, key[key_bytes - 2], now, ctl, how)) {
			__builtin_memcpy(work->key, key, key_bytes);
			work->pending = 1;
		}
		/* In a sparse table much time passes between two entries: jiffies notice. */
		if (!deleted && work->started_ns && work->entries % SWEEP_CLOCK_EVERY &&
		    work->jiffies == (__u32)bpf_jiffies64())
			return 0;
	}
	ns = bpf_ktime_get_ns();
	work->jiffies = bpf_jiffies64();
	if (!work->started_ns)
		work->started_ns = ns;
	if (key && ns - work->started_ns < how->budget_ns)
		return 0;
	record.entries = work->entries;
	record.elapsed_ns = ns - work->started_ns;
	work->started_ns = 0;
	bpf_seq_write(meta->seq, &record, sizeof(record));
	return 0;
}

/*
 * The same for one entry. Between entries an iterator cannot be stopped, and it spends 20 ns on
 * each bucket without any, so a large table with few of them is not for it.
 */
static __always_inline int sweep_single(void *map, __u32 table, const void *key, __u16 zone,
					__u8 proto)
{
	__u32 zero = 0, now;
	struct sweep_report *report = bpf_map_lookup_elem(&sweep_reports, &table);
	struct sweep_control *how = bpf_map_lookup_elem(&sweep_control, &zero);
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);
	struct sweep_work *work = bpf_map_lookup_elem(&sweep_work, &table);
	struct flow *flow = bpf_map_lookup_elem(map, key);

	if (!report || !how || !ctl || !flow || !work)
		return 0;
	now = now_ticks(ctl);
	sweep_count(report, flow, flow_age(flow, now), how);
	sweep_zone(work, flow, table, zone);
	if (flow_is_idle(flow, proto, now, ctl, how))
		sweep_expire(map, table, key, flow, report, how);
	return 0;
}

#endif
