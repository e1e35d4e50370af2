/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Services: which one a request is for, and which of its VMs gets a new flow. */
#ifndef LASTHOP_SERVICE_H
#define LASTHOP_SERVICE_H

#include "frame.h"
#include "key.h"
#include "maps.h"
#include "vm.h"

#define POOL_TRIES 16 /* cells that are looked at for a VM that is up */

#define bump(stats, field)                                                                         \
	do {                                                                                       \
		if (stats)                                                                         \
			(stats)->field++;                                                          \
	} while (0)

static __always_inline struct service_stats *service_stats_of(__u32 index)
{
	return bpf_map_lookup_elem(&service_stats, &index);
}

/* IPv4 as ::ffff:a.b.c.d */
static __always_inline void address_map(__u8 *to, const struct packet *p, bool local)
{
	__u32 *words = (__u32 *)to;

	if (p->family == 4) {
		words[0] = 0;
		words[1] = 0;
		words[2] = bpf_htonl(0xffff);
		words[3] = local ? p->key4.local : p->key4.remote;
	} else {
		__builtin_memcpy(to, local ? p->key6.local : p->key6.remote, 16);
	}
}

/* Index of the service that has the flow's local side, 0 if none has. */
__noinline __u32 service_find(const struct packet *p)
{
	struct service_key key = {.prefix_bits = SERVICE_KEY_BITS + 128};
	__u32 *index;

	if (!p)
		return 0;
	key.zone = packet_zone(p);
	key.proto = packet_proto(p);
	key.port = p->family == 4 ? p->key4.local_port : p->key6.local_port;
	address_map(key.address, p, true);
	index = bpf_map_lookup_elem(&service_index, &key);
	if (!index && key.port) {
		key.port = 0;
		index = bpf_map_lookup_elem(&service_index, &key);
	}
	return index ? *index : 0;
}

/* Index of the service for whose address ARP or ND asks. */
static __always_inline __u32 service_of_address(__u16 zone, const __u32 *address)
{
	struct service_key key = {
		.prefix_bits = SERVICE_KEY_BITS + 128,
		.zone = zone,
		.proto = SERVICE_PROTO_ANSWER,
	};
	__u32 *index;

	__builtin_memcpy(key.address, address, 16);
	index = bpf_map_lookup_elem(&service_index, &key);
	return index ? *index : 0;
}

/* Multiply and fold, word by word: the same for all packets of a flow, and whoever runs this. */
static __always_inline __u64 hash_add(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

static __always_inline __u32 flow_hash(const struct packet *p, bool client_only)
{
	__u64 hash = 0;

	if (client_only && p->family == 4) {
		hash = hash_add(hash, p->key4.remote);
	} else if (client_only) {
		hash = hash_add(hash, p->key_words[2]);
		hash = hash_add(hash, p->key_words[3]);
	} else {
		hash = hash_add(hash, p->key_words[0]);
		hash = hash_add(hash, p->key_words[1]);
		if (p->family == 6) {
			hash = hash_add(hash, p->key_words[2]);
			hash = hash_add(hash, p->key_words[3]);
			hash = hash_add(hash, p->key_words[4]);
		}
	}
	return hash_add(hash, 0) >> 16;
}

/* What stands at a place of a pool. */
static __always_inline __u32 pool_at(const struct pool *pool, __u32 place)
{
	__u32 row = pool->line + place / POOL_LINE_CELLS, column = place % POOL_LINE_CELLS;
	struct pool_line *line = bpf_map_lookup_elem(&pool_lines, &row);

	return line ? line->cells[column] : VMS_MAX;
}

static __always_inline struct vm_cell *pool_vm(__u32 number)
{
	struct vm_cell *cell = bpf_map_lookup_elem(&vm_cells, &number);

	return cell && READ_ONCE(cell->state) == VM_UP && cell->ifindex ? cell : NULL;
}

/*
 * Of a small pool the VM with the fewest flows for its weight, of a large one that of POOL_TRIES
 * which follow a random place.
 */
static __always_inline __u32 pool_least(const struct pool *pool)
{
	__u64 least_flows = 0, least_weight = 0;
	__u32 place, id = 0, size = pool->size;

	place = bpf_get_prandom_u32() % size;
	for (__u32 i = 0; i < POOL_TRIES && i < size; i++) {
		__u32 number = pool_at(pool, place), weight = pool_at(pool, size + place), *flows;
		struct vm_cell *cell = pool_vm(number);
		__s32 open;

		place = place + 1 == size ? 0 : place + 1;
		flows = bpf_map_lookup_elem(&vm_flows, &number);
		if (!cell || !flows)
			continue;
		open = READ_ONCE(*flows);
		if (open < 0)
			open = 0;
		if (id && (__u64)open * least_weight >= least_flows * weight)
			continue;
		id = cell->id;
		least_flows = open;
		least_weight = weight;
	}
	return id;
}

/* Id of a VM of the pool for a new flow, 0 if none is up. */
__noinline __u32 pool_choose(const struct packet *p, __u32 index)
{
	struct pool *pool = bpf_map_lookup_elem(&pools, &index);
	__u32 *cursor, place, size;

	if (!p || !pool || !pool->size)
		return 0;
	size = pool->size;
	if (pool->policy == SERVICE_LEAST_FLOWS)
		return pool_least(pool);
	if (pool->policy == SERVICE_ROUND_ROBIN) {
		cursor = bpf_map_lookup_elem(&pool_cursors, &index);
		place = cursor ? __sync_fetch_and_add(cursor, 1) : 0;
	} else {
		place = flow_hash(p, pool->policy == SERVICE_SOURCE_HASH);
	}
	place %= size;
	/* One that has just gone down may stand there until the controller has taken it out. */
	for (__u32 i = 0; i < POOL_TRIES; i++) {
		struct vm_cell *cell = pool_vm(pool_at(pool, place));

		if (cell)
			return cell->id;
		place = place + 1 == size ? 0 : place + 1;
	}
	return 0;
}

/* The pool that was stored for this client, 0 for none. */
static __always_inline __u32 service_association(const struct packet *p, __u32 index)
{
	struct association_key key = {.prefix_bits = 32 + 128, .service = index};
	__u32 *pool;

	address_map(key.client, p, false);
	pool = bpf_map_lookup_elem(&associations, &key);
	return pool ? *pool : 0;
}

static __always_inline struct affinity *affinity_find(const struct packet *p, __u32 index)
{
	struct affinity_key key = {.service = index};

	address_map(key.client, p, false);
	return bpf_map_lookup_elem(&affinities, &key);
}

/* The VM that had the client's last flow, if that is not too long ago; 0 for none. */
static __always_inline __u32 affinity_vm(const struct packet *p, const struct service *s,
					 __u32 index)
{
	struct affinity *known = affinity_find(p, index);
	__u32 id;

	if (!known || p->now - known->last_seen >= s->affinity_ticks)
		return 0;
	id = READ_ONCE(known->vm);
	if (!pool_vm(vm_cell_number(id)))
		return 0;
	known->last_seen = p->now;
	return id;
}

static __always_inline void affinity_keep(const struct packet *p, __u32 index, __u32 id)
{
	struct affinity *known = affinity_find(p, index);
	struct affinity_key key = {.service = index};
	struct affinity value = {.vm = id, .last_seen = p->now};

	if (known) {
		WRITE_ONCE(known->vm, id);
		known->last_seen = p->now;
		return;
	}
	address_map(key.client, p, false);
	/* If this fails the next flow of the client is distributed like any other. */
	bpf_map_update_elem(&affinities, &key, &value, BPF_NOEXIST);
}

/* Id of the VM for a new flow of a service, 0 if none is up. Stored associations come first. */
__noinline __u32 service_choose(const struct packet *p, __u32 index)
{
	struct service *s = bpf_map_lookup_elem(&services, &index);
	struct service_stats *stats = service_stats_of(index);
	struct vm_stats *vm;
	__u32 id = 0, number, stored;

	if (!p || !s)
		return 0;
	if (s->flags & SERVICE_ASSOCIATED) {
		stored = service_association(p, index);
		if (stored)
			id = pool_choose(p, stored);
		if (id)
			bump(stats, associated);
	}
	if (!id && s->affinity_ticks) {
		id = affinity_vm(p, s, index);
		if (id)
			bump(stats, affine);
	}
	if (!id) {
		id = pool_choose(p, READ_ONCE(s->pool));
		if (id && s->affinity_ticks)
			affinity_keep(p, index, id);
	}
	if (!id) {
		bump(stats, empty);
		return 0;
	}
	bump(stats, flows);
	number = vm_cell_number(id);
	vm = bpf_map_lookup_elem(&vm_stats, &number);
	bump(vm, flows);
	vm_cell_count_flows(number, 1);
	return id;
}

#endif
