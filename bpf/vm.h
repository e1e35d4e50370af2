/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* VMs by the id that flows name: where their frames go, and how many flows they have. */
#ifndef LASTHOP_VM_H
#define LASTHOP_VM_H

#include "frame.h"
#include "maps.h"

/* Global, so that the verifier looks at it once. */
__noinline __u32 vm_cell_search(__u32 id)
{
	for (__u32 i = 0; i < VM_CELL_TRIES; i++) {
		__u32 number = (id + i) % VMS_MAX;
		struct vm_cell *cell = bpf_map_lookup_elem(&vm_cells, &number);

		if (id && cell && READ_ONCE(cell->id) == id)
			return number;
	}
	return VMS_MAX;
}

/*
 * The cell in which the VM stands, VMS_MAX if it is nobody's. That is nearly always the first that
 * it may be, and a call costs more than the look: 10 ns where returns are guarded.
 */
static __always_inline __u32 vm_cell_number(__u32 id)
{
	__u32 number = id % VMS_MAX;
	struct vm_cell *cell = bpf_map_lookup_elem(&vm_cells, &number);

	return id && cell && READ_ONCE(cell->id) == id ? number : vm_cell_search(id);
}

/*
 * Has the kernel lost its tap? Asked once a tick, as in interface_exists. For TC only: the kernel
 * keeps a DEVMAP to programs of one kind. From then on the cell has none, so that no pool chooses
 * the VM until the controller has found it again.
 */
static __always_inline bool vm_tap_is_gone(__u32 id, __u32 now)
{
	__u32 number = vm_cell_number(id), slot, *device, ifindex;
	struct vm_stats *stats = bpf_map_lookup_elem(&vm_stats, &number);
	struct vm_cell *cell = bpf_map_lookup_elem(&vm_cells, &number);

	if (!cell || !stats)
		return true;
	if (stats->last_seen == now)
		return false;
	slot = cell->slot;
	ifindex = READ_ONCE(cell->ifindex);
	device = bpf_map_lookup_elem(&egress_devices, &slot);
	if (device && *device == ifindex)
		return false;
	__sync_val_compare_and_swap(&cell->ifindex, ifindex, 0);
	return true;
}

static __always_inline bool vm_is_alive(const struct vm_cell *cell)
{
	__u8 state = READ_ONCE(cell->state);

	return state == VM_UP || state == VM_DRAIN;
}

/* Open flows of services of the VM in a cell become more, or fewer. */
static __always_inline void vm_cell_count_flows(__u32 number, __s32 change)
{
	__u32 *flows = bpf_map_lookup_elem(&vm_flows, &number);

	if (flows)
		__sync_fetch_and_add(flows, change);
}

/* The same by its id. */
__noinline int vm_count_flows(__u32 id, __s32 change)
{
	vm_cell_count_flows(vm_cell_number(id), change);
	return 0;
}

/* Is `vm` to answer what `owner` was given? A stored policy may say so. */
__noinline int vm_answers_for(__u32 owner, __u32 vm)
{
	__u32 number = vm_cell_number(owner);
	struct vm_cell *cell = bpf_map_lookup_elem(&vm_cells, &number);

	return cell && vm && cell->responses == vm;
}

static __always_inline struct vm *vm_find(__u16 zone, const __u8 *mac)
{
	struct vm_key key = {.zone = zone};

	mac_copy(key.mac, mac);
	return bpf_map_lookup_elem(&vms, &key);
}

/* Id of the VM that has this MAC, 0 if none has. */
static __always_inline __u32 vm_id(__u16 zone, const __u8 *mac)
{
	struct vm *vm = vm_find(zone, mac);

	return vm ? vm->id : 0;
}

/* Is the frame for this VM, but not addressed to its MAC? */
__noinline int vm_is_missed(const struct packet *p, __u32 vm)
{
	__u32 number = vm_cell_number(vm);
	struct vm_cell *cell = bpf_map_lookup_elem(&vm_cells, &number);

	return p && cell && (p->no_link_layer || !mac_equal(cell->mac, p->destination));
}

#endif
