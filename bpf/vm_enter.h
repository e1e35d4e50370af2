/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Tap: which VM a frame is from. One that is new is entered, within the tap's budget. */
#ifndef LASTHOP_VM_ENTER_H
#define LASTHOP_VM_ENTER_H

#include "frame.h"
#include "maps.h"
#include "notice.h"
#include "vm.h"

static __noinline __u32 vm_learn(const struct packet *p, const struct interface *in)
{
	struct vm_key key = {.zone = in->zone};
	struct vm vm = {.ifindex = p->ifindex, .last_seen = p->now};
	__u32 zero = 0, slot = in->slot;
	struct allocations *given = bpf_map_lookup_elem(&allocations, &zero);
	struct budget *budget = bpf_map_lookup_elem(&budgets, &slot);

	if (!given || !budget)
		return 0;
	if (__sync_fetch_and_add(&budget->vms, 1) >= budget->vms_max) {
		__sync_fetch_and_add(&budget->vms, -1);
		notice(NOTICE_VM_BUDGET, p, 0);
		return 0;
	}
	mac_copy(key.mac, p->source);
	vm.id = __sync_fetch_and_add(&given->vms, 1) + 1;
	if (!bpf_map_update_elem(&vms, &key, &vm, BPF_NOEXIST)) {
		notice(NOTICE_VM, p, 0);
		return vm.id;
	}
	__sync_fetch_and_add(&budget->vms, -1);
	/* Another CPU was first, or the table is full. */
	struct vm *found = bpf_map_lookup_elem(&vms, &key);

	return found ? found->id : 0;
}

/*
 * Enters a VM that is seen on a tap, or has come to it from another one. Whoever finds the tap's
 * cell free claims it; two MACs of one tap share nothing but that cell.
 */
static __noinline __u32 vm_enter(const struct packet *p, const struct interface *in)
{
	__u32 slot = in->slot, id;
	struct vm *vm = vm_find(in->zone, p->source);
	struct interface *before;
	struct tap *tap;

	if (vm) {
		id = vm->id;
		if (vm->ifindex != p->ifindex) {
			/* Moved: the cell of the tap that it left must not answer for it. */
			before = bpf_map_lookup_elem(&interfaces, &vm->ifindex);
			if (before) {
				tap = bpf_map_lookup_elem(&taps, &before->slot);
				if (tap && tap->vm == id) {
					tap->vm = 0;
					barrier();
					tap->claimed = 0;
				}
			}
			vm->ifindex = p->ifindex;
			notice(NOTICE_VM_MOVED, p, 0);
		}
		if (vm->last_seen != p->now)
			vm->last_seen = p->now;
	} else {
		id = vm_learn(p, in);
	}
	tap = bpf_map_lookup_elem(&taps, &slot);
	if (!id || !tap || tap->claimed || __sync_val_compare_and_swap(&tap->claimed, 0, 1))
		return id;
	mac_copy(tap->mac, p->source);
	barrier();
	WRITE_ONCE(tap->vm, id);
	return id;
}

/* Id of the VM that sent this frame, 0 if it cannot be one of ours. */
static __always_inline __u32 vm_of(const struct packet *p, const struct interface *in)
{
	__u32 slot = in->slot, id;
	struct tap *tap = bpf_map_lookup_elem(&taps, &slot);

	if (tap) {
		id = READ_ONCE(tap->vm);
		/* Twice the same id: the MAC in between was its. */
		if (id && mac_equal(tap->mac, p->source) && READ_ONCE(tap->vm) == id) {
			if (tap->last_seen != p->now)
				tap->last_seen = p->now;
			return id;
		}
	}
	return source_is_other(p, in) ? vm_enter(p, in) : 0;
}

/* Why a sender has no id. */
static __always_inline int no_vm_reason(const struct packet *p, const struct interface *in)
{
	return source_is_other(p, in) ? REASON_VM_BUDGET : REASON_SOURCE_MAC;
}

#endif
