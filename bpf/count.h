/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Counters: each packet once by reason, and once for its last hop. */
#ifndef LASTHOP_COUNT_H
#define LASTHOP_COUNT_H

#include "frame.h"
#include "maps.h"

static __always_inline void count_verdict(__u32 slot, __u32 reason, __u32 length_bytes)
{
	__u32 row = slot * REASONS + reason;
	struct verdict_count *count = bpf_map_lookup_elem(&verdicts, &row);

	if (!count)
		return;
	count->packets++;
	count->bytes += length_bytes;
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

#endif
