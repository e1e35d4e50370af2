/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Questions to the host's routing tables. */
#ifndef LASTHOP_FIB_H
#define LASTHOP_FIB_H

#include "frame.h"
#include "key.h"

/* bpf_fib_lookup's families: the kernel's numbers, without pulling in a libc header. */
#define FIB_INET  2
#define FIB_INET6 10

/* The question: where would the host send a packet of this flow towards that side? */
static __always_inline void fib_ask(struct bpf_fib_lookup *fib, const struct packet *p,
				    const struct interface *in, bool towards_local)
{
	fib->ifindex = in->l3_ifindex;
	fib->l4_protocol = packet_proto(p);
	if (p->family == 4) {
		fib->family = FIB_INET;
		fib->ipv4_src = towards_local ? p->key4.remote : p->key4.local;
		fib->ipv4_dst = towards_local ? p->key4.local : p->key4.remote;
	} else {
		fib->family = FIB_INET6;
		__builtin_memcpy(fib->ipv6_src, towards_local ? p->key6.remote : p->key6.local, 16);
		__builtin_memcpy(fib->ipv6_dst, towards_local ? p->key6.local : p->key6.remote, 16);
	}
}

#endif
