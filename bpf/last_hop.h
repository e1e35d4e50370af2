/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Records of last hops. A flow names one by generation and index; the alias of that index says
 * which record to use now. A record is written before its alias names it and never after, so that a
 * reader cannot see half of one: an index comes back only through last_hop_free, some time after
 * its alias was cleared.
 */
#ifndef LASTHOP_LAST_HOP_H
#define LASTHOP_LAST_HOP_H

#include "encapsulation.h"
#include "frame.h"
#include "maps.h"
#include "notice.h"

#define LOWERS_MAX 3 /* netdevs on top of each other, all attached */

#define GENERATION_MASK ((1U << (32 - LAST_HOP_INDEX_BITS)) - 1)

static __always_inline __u32 last_hop_reference(__u32 index, __u32 generation)
{
	return generation << LAST_HOP_INDEX_BITS | index;
}

static __always_inline bool tags_equal(const struct vlan_tag *a, const struct vlan_tag *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline void last_hop_key_fill(struct last_hop_key *key, const struct packet *p)
{
	const struct encapsulation *e;

	__builtin_memset(key, 0, sizeof(*key));
	key->ifindex = p->ifindex;
	mac_copy(key->mac, p->source);
	key->tags[0] = p->tags[0];
	key->tags[1] = p->tags[1];
	key->encapsulated = p->encapsulated;
	if (!p->encapsulated)
		return;
	e = encapsulation_scratch();
	if (e && (p->encapsulated & ENCAPSULATION_TUNNEL)) {
		__builtin_memcpy(key->tunnel_remote, e->tunnel.remote, 16);
		key->tunnel_id = e->tunnel.id;
	}
	if (e && (p->encapsulated & ENCAPSULATION_LABELS))
		__builtin_memcpy(key->labels, e->labels, sizeof(key->labels));
}

static __always_inline __u8 last_hop_kind_of(const struct packet *p, const struct interface *in)
{
	if ((in->flags & INTERFACE_VIA_STACK) ||
	    (p->encapsulated & (ENCAPSULATION_LABELS | ENCAPSULATION_IPSEC)))
		return LAST_HOP_STACK;
	return p->no_link_layer ? LAST_HOP_IP : LAST_HOP_ETHERNET;
}

/*
 * The mark with which the host's routing finds the way back. Labels are per direction, so those of
 * the request say nothing of the reply's unless the operator did. False if he did not.
 */
static __always_inline bool last_hop_mark(const struct packet *p, const struct interface *in,
					  __u32 *mark)
{
	const struct encapsulation *e;
	struct label_stack labels;
	__u32 *found;

	*mark = in->mark;
	if (!(p->encapsulated & ENCAPSULATION_LABELS))
		return true;
	e = encapsulation_scratch();
	if (!e)
		return false;
	__builtin_memcpy(labels.labels, e->labels, sizeof(labels.labels));
	found = bpf_map_lookup_elem(&label_stacks, &labels);
	if (found)
		*mark = *found;
	return found;
}

/* The reference of a record that is in use, 0 if it is being given back. */
static __always_inline __u32 last_hop_reference_of(__u32 index)
{
	struct last_hop *record = bpf_map_lookup_elem(&last_hops, &index);

	if (!record || !record->generation)
		return 0;
	return last_hop_reference(index, record->generation);
}

/* An index that nobody uses, or LAST_HOPS_MAX. */
static __always_inline __u32 last_hop_take(struct allocations *given)
{
	__u32 index;

	if (!bpf_map_pop_elem(&last_hop_free, &index))
		return index;
	if (READ_ONCE(given->last_hops) >= LAST_HOPS_MAX)
		return LAST_HOPS_MAX;
	index = __sync_fetch_and_add(&given->last_hops, 1);
	return index < LAST_HOPS_MAX ? index : LAST_HOPS_MAX;
}

/* Returns a reference, or 0 with `why` set. */
__noinline __u32 last_hop_learn(const struct packet *p, const struct interface *in, int *why)
{
	struct last_hop_key key;
	struct last_hop *record;
	struct allocations *given;
	struct budget *budget;
	__u32 index, generation, reference, *found, mark, zero = 0, slot;
	long rc;

	if (!p || !in || !why)
		return 0;
	slot = in->slot;
	*why = REASON_ERROR;
	last_hop_key_fill(&key, p);
	found = bpf_map_lookup_elem(&last_hop_index, &key);
	if (found)
		return last_hop_reference_of(*found);
	if (in->flags & INTERFACE_LEARN_DEVICES) {
		*why = REASON_UNKNOWN_DEVICE;
		return 0;
	}
	given = bpf_map_lookup_elem(&allocations, &zero);
	budget = bpf_map_lookup_elem(&budgets, &slot);
	if (!given || !budget)
		return 0;
	if (!last_hop_mark(p, in, &mark)) {
		*why = REASON_UNKNOWN_LABELS;
		return 0;
	}
	if (__sync_fetch_and_add(&budget->last_hops, 1) >= budget->last_hops_max) {
		*why = REASON_LAST_HOP_BUDGET;
		notice(NOTICE_LAST_HOP_BUDGET, p, 0);
		goto give_budget;
	}
	index = last_hop_take(given);
	record = bpf_map_lookup_elem(&last_hops, &index);
	if (!record) {
		*why = REASON_LAST_HOP_BUDGET;
		goto give_budget;
	}
	generation = (record->generation + 1) & GENERATION_MASK;
	if (!generation)
		generation = 1;
	reference = last_hop_reference(index, generation);
	record->kind = last_hop_kind_of(p, in);
	record->origin = ORIGIN_LEARNED;
	record->ifindex = p->ifindex;
	record->slot = slot;
	mac_copy(record->mac, p->source);
	mac_copy(record->source_mac, in->host_mac);
	record->tags[0] = p->tags[0];
	record->tags[1] = p->tags[1];
	record->created = p->now;
	record->mark = mark;
	encapsulation_keep(record, p);
	record->generation = generation;
	barrier();
	bpf_map_update_elem(&last_hop_alias, &index, &reference, BPF_ANY);
	rc = bpf_map_update_elem(&last_hop_index, &key, &index, BPF_NOEXIST);
	if (!rc) {
		notice(NOTICE_LAST_HOP, p, index);
		return reference;
	}
	/* Lost the race, or the index is full: nobody has seen this record, give it back. */
	record->kind = LAST_HOP_NONE;
	bpf_map_push_elem(&last_hop_free, &index, BPF_ANY);
	found = bpf_map_lookup_elem(&last_hop_index, &key);
	__sync_fetch_and_add(&budget->last_hops, -1);
	return found ? last_hop_reference_of(*found) : 0;
give_budget:
	__sync_fetch_and_add(&budget->last_hops, -1);
	return 0;
}

/*
 * Did this request come from where the flow's replies go? Whether by IPsec is asked when a flow is
 * learned: it stays until the flow moves or begins anew.
 */
static __always_inline bool last_hop_is_source(__u32 reference, const struct packet *p)
{
	__u32 index = reference & LAST_HOP_INDEX_MASK, *found;
	struct last_hop *record = bpf_map_lookup_elem(&last_hops, &index);
	struct last_hop_key key;

	if (!record || record->generation != reference >> LAST_HOP_INDEX_BITS)
		return false;
	if (record->ifindex == p->ifindex && mac_equal(record->mac, p->source) &&
	    tags_equal(record->tags, p->tags) &&
	    (record->encapsulated & ~ENCAPSULATION_IPSEC) == p->encapsulated &&
	    (!p->encapsulated || encapsulation_is(record, p->encapsulated)))
		return true;
	/* A device with several MACs: another key of the same record. */
	last_hop_key_fill(&key, p);
	found = bpf_map_lookup_elem(&last_hop_index, &key);
	return found && *found == index;
}

/*
 * Is this the record of what this interface shows of the request's source? A device may be answered
 * at another MAC than it sends from: the index knows.
 */
static __noinline bool last_hop_is_of(__u32 index, const struct packet *p, __u32 ifindex,
				      const struct vlan_tag *tags)
{
	struct last_hop *record = bpf_map_lookup_elem(&last_hops, &index);
	struct last_hop_key key;
	__u32 *found;

	if (record && record->ifindex == ifindex && mac_equal(record->mac, p->source) &&
	    tags_equal(record->tags, tags))
		return true;
	last_hop_key_fill(&key, p);
	key.ifindex = ifindex;
	key.tags[0] = tags[0];
	key.tags[1] = tags[1];
	found = bpf_map_lookup_elem(&last_hop_index, &key);
	return found && *found == index;
}

/*
 * Was this request learned before, where it came in beneath this interface? The netdev beneath it
 * sees it with the tag that leads here. A bridge may give tags to what comes in by a port, or take
 * them: they say nothing there.
 */
__noinline int last_hop_is_below(__u32 reference, const struct packet *p,
				 const struct interface *in)
{
	__u32 index = reference & LAST_HOP_INDEX_MASK, ifindex;
	struct vlan_tag tags[2];
	struct interface *source;
	struct last_hop *record;

	if (!p)
		return false;
	tags[0] = p->tags[0];
	tags[1] = p->tags[1];
	ifindex = p->ifindex;
	record = bpf_map_lookup_elem(&last_hops, &index);
	if (!record || record->generation != reference >> LAST_HOP_INDEX_BITS ||
	    record->ifindex == ifindex)
		return false;
	source = bpf_map_lookup_elem(&interfaces, &record->ifindex);
	if (!source)
		return false;
	for (int i = 0; i < LOWERS_MAX; i++) {
		if (source->l3_ifindex == ifindex && record->ifindex != ifindex)
			return last_hop_is_of(index, p, record->ifindex, record->tags);
		if (!in || !(in->flags & INTERFACE_LOWER))
			return false;
		ifindex = in->lower_ifindex;
		if (in->lower_tag.proto) {
			if (tags[1].proto)
				return false;
			tags[1] = tags[0];
			tags[0] = in->lower_tag;
		}
		if (last_hop_is_of(index, p, ifindex, tags))
			return true;
		in = bpf_map_lookup_elem(&interfaces, &ifindex);
	}
	return false;
}

/*
 * The reference of the record that took this one's place, if the request came from there: the
 * interface returned under another index, or a MAC changed. 0 otherwise.
 */
__noinline __u32 last_hop_successor(__u32 reference, const struct packet *p)
{
	__u32 index = reference & LAST_HOP_INDEX_MASK, *alias, *found;
	struct last_hop_key key;

	if (!p)
		return 0;
	alias = bpf_map_lookup_elem(&last_hop_alias, &index);
	if (!alias || *alias == reference ||
	    *alias >> LAST_HOP_INDEX_BITS != reference >> LAST_HOP_INDEX_BITS)
		return 0;
	last_hop_key_fill(&key, p);
	found = bpf_map_lookup_elem(&last_hop_index, &key);
	if (!found || *found != (*alias & LAST_HOP_INDEX_MASK))
		return 0;
	return last_hop_reference_of(*found);
}

#endif
