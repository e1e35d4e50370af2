/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Fragments follow their first one: it leaves its ports for the others. */
#ifndef LASTHOP_FRAGMENT_H
#define LASTHOP_FRAGMENT_H

#include "frame.h"
#include "maps.h"

/* Reassembly gives up after 30 s (net.ipv4.ipfrag_time; 60 s in RFC 8200 4.5); ids come again. */
#define FRAGMENT_TICKS ((30ULL * 1000000000) >> TICK_SHIFT)

static __always_inline void fragment_key_fill(struct fragment_key *key, const struct packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	if (p->family == 4) {
		*(__be32 *)key->source = source_is_local(p) ? p->key4.local : p->key4.remote;
		*(__be32 *)key->destination = source_is_local(p) ? p->key4.remote : p->key4.local;
	} else if (source_is_local(p)) {
		__builtin_memcpy(key->source, p->key6.local, 16);
		__builtin_memcpy(key->destination, p->key6.remote, 16);
	} else {
		__builtin_memcpy(key->source, p->key6.remote, 16);
		__builtin_memcpy(key->destination, p->key6.local, 16);
	}
	key->id = p->fragment_id;
	key->zone = p->zone;
	key->proto = p->proto;
	key->family = p->family;
}

static __always_inline bool fragment_find(struct packet *p)
{
	struct fragment_key key;
	struct fragment *first;

	fragment_key_fill(&key, p);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first || p->now - first->seen > FRAGMENT_TICKS)
		return false;
	p->source_port = first->source_port;
	p->destination_port = first->destination_port;
	return true;
}

static __always_inline void fragment_note(const struct packet *p)
{
	struct fragment value = {
		.source_port = p->source_port,
		.destination_port = p->destination_port,
		.seen = p->now,
	};
	struct fragment_key key;

	fragment_key_fill(&key, p);
	/* If this fails the later fragments pass, and are counted. */
	bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
}

#endif
