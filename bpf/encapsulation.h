/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What a request came in beside its frame: the tunnel key of a shared device, a label stack, IPsec.
 * Few packets have any, so it is kept apart from struct packet, in scratch, of which each CPU has
 * one: programs do not interrupt each other.
 */
#ifndef LASTHOP_ENCAPSULATION_H
#define LASTHOP_ENCAPSULATION_H

#include <linux/if_ether.h>
#include "frame.h"
#include "maps.h"
#include "xfrm.h"

/* Flags of struct bpf_tunnel_key.tunnel_flags (include/net/ip_tunnels.h). */
#define TUNNEL_FLAG_CSUM      bpf_htons(0x01)
#define TUNNEL_FLAG_KEY	      bpf_htons(0x04)
#define TUNNEL_FLAG_DONT_FRAG bpf_htons(0x0100)
#define TUNNEL_FLAGS_KEPT     (TUNNEL_FLAG_CSUM | TUNNEL_FLAG_KEY | TUNNEL_FLAG_DONT_FRAG)

#ifndef BPF_F_TUNINFO_FLAGS
#define BPF_F_TUNINFO_FLAGS (1ULL << 4)
#endif
#ifndef BPF_F_NO_TUNNEL_KEY
#define BPF_F_NO_TUNNEL_KEY (1ULL << 4)
#endif

#define DSCP_MASK 0xfc

static __always_inline struct encapsulation *encapsulation_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

static __always_inline bool octets_equal(const __u8 *a, const __u8 *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]));
}

/* An MPLS label stack entry, RFC 3032 2.1. */
#define LABEL_OF(entry)	 (bpf_ntohl(entry) >> 12)
#define LABEL_TTL(entry) (bpf_ntohl(entry) & 0xff)
#define LABEL_BOTTOM	 bpf_htonl(1 << 8)

/* Only IP is behind the labels that we know; its version says which. */
static __always_inline int parse_labels(const struct cursor *c, struct packet *p)
{
	struct encapsulation *e = encapsulation_scratch();
	__be32 *entry;
	__u8 *version;

	if (!e)
		return REASON_ERROR;
	__builtin_memset(e->labels, 0, sizeof(e->labels));
	for (int i = 0; i < LABELS_MAX; i++) {
		entry = header(c, p, sizeof(*entry));
		if (!entry)
			return PARSE_SHORT;
		if (!i)
			p->label_ttl = LABEL_TTL(*entry);
		e->labels[i] = LABEL_OF(*entry);
		p->label_count = i + 1;
		p->offset += sizeof(*entry);
		if (*entry & LABEL_BOTTOM)
			goto bottom;
	}
	return REASON_LABEL_DEPTH;
bottom:
	p->encapsulated |= ENCAPSULATION_LABELS;
	p->l3_offset = p->offset;
	version = header(c, p, sizeof(*version));
	if (!version)
		return PARSE_SHORT;
	if (*version >> 4 == 4)
		p->family = 4;
	else if (*version >> 4 == 6)
		p->family = 6;
	else
		return REASON_NOT_IP;
	return PARSED;
}

/*
 * A shared tunnel device leaves the outer header's addresses and id with the packet. Returns flags
 * of enum encapsulation_flag, -1 if that went wrong.
 */
static __noinline int tunnel_key_read(struct __sk_buff *skb)
{
	struct encapsulation *e = encapsulation_scratch();
	struct bpf_tunnel_key key = {};
	struct tunnel_key *to;

	if (!e)
		return -1;
	to = &e->tunnel;
	__builtin_memset(to, 0, sizeof(*to));
	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_FLAGS)) {
		*(__be32 *)(to->remote + 8) = bpf_htonl(0xffff);
		*(__be32 *)(to->remote + 12) = bpf_htonl(key.remote_ipv4);
		*(__be32 *)(to->local + 8) = bpf_htonl(0xffff);
		*(__be32 *)(to->local + 12) = bpf_htonl(key.local_ipv4);
	} else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key),
					   BPF_F_TUNINFO_FLAGS | BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(to->remote, key.remote_ipv6, 16);
		__builtin_memcpy(to->local, key.local_ipv6, 16);
	} else {
		/* Of the same device, but not from a tunnel. */
		return 0;
	}
	to->id = key.tunnel_id;
	to->flags = key.tunnel_flags & TUNNEL_FLAGS_KEPT;
	to->tos = key.tunnel_tos & DSCP_MASK;
	return ENCAPSULATION_TUNNEL;
}

/* The same of a shared XFRM interface: what xfrm_in found out. */
static __noinline int xfrm_id_read(struct __sk_buff *skb)
{
	struct encapsulation *e = encapsulation_scratch();

	if (!e)
		return -1;
	if (skb->cb[XFRM_CB_MARK] != XFRM_MARK)
		return 0;
	/* What a policy without an interface decrypts comes in here as well. */
	if (!skb->cb[XFRM_CB_ID])
		return ENCAPSULATION_IPSEC;
	__builtin_memset(&e->tunnel, 0, sizeof(e->tunnel));
	e->tunnel.id = skb->cb[XFRM_CB_ID];
	return ENCAPSULATION_TUNNEL | ENCAPSULATION_XFRM;
}

/* For xfrm_out. */
static __always_inline void xfrm_id_write(struct __sk_buff *skb, const struct last_hop *record)
{
	skb->cb[XFRM_CB_ID] = record->encapsulation.tunnel.id;
	skb->cb[XFRM_CB_MARK] = XFRM_MARK;
}

/* Gives the reply's frame to the tunnel device with the key of the request. */
static __noinline bool tunnel_key_write(struct __sk_buff *skb, const struct tunnel_key *from)
{
	const __be32 *remote = (const __be32 *)from->remote, *local = (const __be32 *)from->local;
	struct bpf_tunnel_key key = {};
	__u64 flags = 0;

	if (!remote[0] && !remote[1] && remote[2] == bpf_htonl(0xffff)) {
		key.remote_ipv4 = bpf_ntohl(remote[3]);
		key.local_ipv4 = bpf_ntohl(local[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, remote, 16);
		__builtin_memcpy(key.local_ipv6, local, 16);
		flags |= BPF_F_TUNINFO_IPV6;
	}
	key.tunnel_id = from->id;
	key.tunnel_tos = from->tos;
	key.tunnel_ttl = 64;
	if (!(from->flags & TUNNEL_FLAG_CSUM))
		flags |= BPF_F_ZERO_CSUM_TX;
	if (from->flags & TUNNEL_FLAG_DONT_FRAG)
		flags |= BPF_F_DONT_FRAGMENT;
	/* Before Linux 6.2 a reply without a key cannot be asked for: it has key 0 then. */
	if (!(from->flags & TUNNEL_FLAG_KEY) &&
	    !bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags | BPF_F_NO_TUNNEL_KEY))
		return true;
	return !bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
}

/* Both have the same flags, and some. Tags and MACs are compared elsewhere. */
static __noinline bool encapsulation_is(const struct last_hop *record, __u32 flags)
{
	const struct encapsulation *e = encapsulation_scratch();

	if (!e)
		return false;
	if ((flags & ENCAPSULATION_TUNNEL) &&
	    (record->encapsulation.tunnel.id != e->tunnel.id ||
	     !octets_equal(record->encapsulation.tunnel.remote, e->tunnel.remote)))
		return false;
	return !(flags & ENCAPSULATION_LABELS) ||
	       octets_equal((const __u8 *)record->encapsulation.labels, (const __u8 *)e->labels);
}

/* Of a record that nobody sees yet. */
static __always_inline bool encapsulation_keep(struct last_hop *record, const struct packet *p)
{
	const struct encapsulation *e;

	record->encapsulated = p->encapsulated;
	record->label_count = p->label_count;
	__builtin_memset(&record->encapsulation, 0, sizeof(record->encapsulation));
	if (!(p->encapsulated & (ENCAPSULATION_TUNNEL | ENCAPSULATION_LABELS)))
		return true;
	e = encapsulation_scratch();
	if (!e)
		return false;
	if (p->encapsulated & ENCAPSULATION_TUNNEL)
		record->encapsulation.tunnel = e->tunnel;
	if (p->encapsulated & ENCAPSULATION_LABELS)
		__builtin_memcpy(record->encapsulation.labels, e->labels, sizeof(e->labels));
	return true;
}

#endif
