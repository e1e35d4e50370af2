/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Flows that the operator wants left alone on an interface. */
#ifndef LASTHOP_EXCLUDE_H
#define LASTHOP_EXCLUDE_H

#include "frame.h"
#include "maps.h"

/* The first `bits` of four words in network order. */
static __always_inline bool prefix_equal(const __u32 *a, const __u32 *b, __u32 bits)
{
	__u32 different = 0;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u32 left = bits > 32U * i ? bits - 32U * i : 0;
		__u32 mask = left >= 32 ? 0xffffffff : ~(0xffffffffU >> left);

		different |= (a[i] ^ b[i]) & bpf_htonl(mask);
	}
	return !different;
}

/* Global, so that the verifier looks at it once. Fragments that know no port have port 0. */
__noinline int rule_matches(const struct packet *p, const struct exclusion *rule)
{
	__u32 remote[4] = {0, 0, bpf_htonl(0xffff), 0}, prefix[4];
	__u16 port;

	if (!p || !rule)
		return 0;
	if (p->family == 4)
		remote[3] = p->key4.remote;
	else
		__builtin_memcpy(remote, p->key6.remote, 16);
	__builtin_memcpy(prefix, rule->remote, 16);
	port = bpf_ntohs(p->family == 4 ? p->key4.local_port : p->key6.local_port);
	if (rule->proto && rule->proto != (p->family == 4 ? p->key4.proto : p->key6.proto))
		return 0;
	return port >= rule->port_first && port <= rule->port_last &&
	       prefix_equal(remote, prefix, rule->prefix_bits);
}

__noinline int is_excluded(const struct packet *p, const struct interface *in)
{
	struct exclusions *list;
	__u32 slot;

	if (!p || !in)
		return false;
	slot = in->slot;
	list = bpf_map_lookup_elem(&exclusions, &slot);
	if (!list)
		return false;
	for (int i = 0; i < EXCLUSIONS_MAX; i++) {
		if (i >= list->count)
			return false;
		if (rule_matches(p, &list->rules[i]))
			return true;
	}
	return false;
}

#endif
