/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Uplink: the MSS of a request's SYN fits the way back of its reply. */
#ifndef LASTHOP_REQUEST_MSS_H
#define LASTHOP_REQUEST_MSS_H

#include "fib.h"
#include "frame.h"
#include "interface.h"
#include "maps.h"
#include "mss.h"
#include "vm.h"

static __always_inline bool learn_clamps(const struct packet *p, const struct interface *in,
					 int reason)
{
	return (p->tcp_flags & TCP_SYN) && (in->flags & INTERFACE_CLAMP_MSS) &&
	       (reason == REASON_LEARN || reason == REASON_REFRESH || reason == REASON_RELEARN ||
		reason == REASON_RESTART);
}

/*
 * Is the request for a VM whose tap sends replies back? Where a tap only observes, nothing may
 * change; nor for a VM that is not known yet: it may be behind such a tap.
 */
static __always_inline bool is_for_enforced(void *ctx, const struct packet *p,
					    const struct interface *in, __u32 deliver)
{
	struct vm *vm = vm_find(in->zone, p->destination);
	__u32 number = vm_cell_number(deliver);
	struct bpf_fib_lookup fib = {};
	struct interface *tap = NULL;
	struct vm_cell *cell;
	long rc;

	cell = bpf_map_lookup_elem(&vm_cells, &number);
	if (cell) {
		tap = interface_find(cell->ifindex);
		return tap && tap->role == ROLE_TAP && tap->policy == POLICY_ENFORCE;
	}

	if (!vm && is_for_host_mac(p, in)) {
		fib_ask(&fib, p, in, true);
		rc = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
		if (rc == BPF_FIB_LKUP_RET_SUCCESS)
			vm = vm_find(in->zone, fib.dmac);
		else if (rc != BPF_FIB_LKUP_RET_NO_NEIGH)
			return false;
		if (!vm)
			tap = interface_find(fib.ifindex);
	}
	if (vm)
		tap = interface_find(vm->ifindex);
	return tap && tap->role == ROLE_TAP && tap->policy == POLICY_ENFORCE;
}

/* Lowers the MSS of a SYN to what fits the way back. Global, so that the verifier looks at it once.
 */
__noinline int mss_clamp_request_skb(struct __sk_buff *skb, const struct packet *p,
				     const struct interface *in, __u32 deliver)
{
	__u32 bound, at;

	if (!p || !in)
		return false;
	bound = mss_bound(p, in->mtu);
	at = mss_excess(skb, false, p, bound);
	return at && is_for_enforced(skb, p, in, deliver) && mss_lower_skb(skb, p, at, bound);
}

__noinline int mss_clamp_request_xdp(struct xdp_md *ctx, const struct packet *p,
				     const struct interface *in, __u32 deliver)
{
	__u32 bound, at;

	if (!p || !in)
		return false;
	bound = mss_bound(p, in->mtu);
	at = mss_excess(ctx, true, p, bound);
	return at && is_for_enforced(ctx, p, in, deliver) && mss_lower_xdp(ctx, p, at, bound);
}

#endif
