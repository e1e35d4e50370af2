/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What happens seldom, for the daemon. Whether it reads or not makes no difference here. */
#ifndef LASTHOP_NOTICE_H
#define LASTHOP_NOTICE_H

#include "frame.h"
#include "maps.h"

/*
 * Global, so that the verifier looks at it once. The rate is not exact: CPUs may count over each
 * other, and what is over it is counted as lost.
 */
__noinline int notice(__u32 kind, const struct packet *p, __u32 last_hop)
{
	struct allocations *given;
	struct notice *notice;
	__u32 zero = 0;

	given = bpf_map_lookup_elem(&allocations, &zero);
	if (!given || !p)
		return 0;
	if (given->notices_tick != p->now) {
		given->notices_tick = p->now;
		given->notices_count = 0;
	}
	if (given->notices_count >= NOTICES_PER_TICK)
		goto lost;
	given->notices_count++;
	notice = bpf_ringbuf_reserve(&notices, sizeof(*notice), 0);
	if (!notice)
		goto lost;
	__builtin_memset(notice, 0, sizeof(*notice));
	notice->time_ns = bpf_ktime_get_ns();
	notice->ifindex = p->ifindex;
	notice->last_hop = last_hop;
	notice->zone = p->zone;
	notice->kind = kind;
	__builtin_memcpy(notice->mac, p->source, 6);
	bpf_ringbuf_submit(notice, 0);
	return 0;
lost:
	__sync_fetch_and_add(&given->notices_lost, 1);
	return 0;
}

#endif
