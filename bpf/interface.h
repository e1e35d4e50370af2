/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What is known of a netdev. */
#ifndef LASTHOP_INTERFACE_H
#define LASTHOP_INTERFACE_H

#include "frame.h"
#include "maps.h"

static __always_inline struct interface *interface_find(__u32 ifindex)
{
	__u32 cell = ifindex % NEAR_INTERFACES;
	struct interface *in = bpf_map_lookup_elem(&near_interfaces, &cell);

	if (in && in->ifindex == ifindex)
		return in;
	return bpf_map_lookup_elem(&interfaces, &ifindex);
}

#endif
