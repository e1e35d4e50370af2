/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the outer header of a packet shows: the key of tunnel_index, and where its inside begins. */
#ifndef LASTHOP_TUNNEL_OUTER_H
#define LASTHOP_TUNNEL_OUTER_H

#include "tunnel.h"

/* Results beside PARSED and PARSE_SHORT. */
#define ARRIVAL_PASS   0
#define ARRIVAL_BROKEN 1

struct arrival {
	__u32 inner;  /* where the inner frame or packet begins */
	__u32 packet; /* where the inner packet does */
	__u32 end;    /* of the outer packet */
	__be16 proto; /* of the inner packet */
	__u8 outer_proto;
	__u8 ecn; /* of the outer header */
	__u8 label_ttl;
};

/* RFC 2473 5.1: a Destination Options header with the limit of nested tunnels, as Linux sends it.
 */
struct tunnel_limit {
	__u8 next;
	__u8 length;
	__u8 option;
	__u8 option_length;
	__u8 limit;
	__u8 padding;
	__u8 padding_length;
	__u8 zero;
};

static __always_inline bool may_be_tunnel(__u8 proto)
{
	return proto == IPPROTO_UDP || proto == IPPROTO_GRE || proto == IPPROTO_IPIP ||
	       proto == IPPROTO_IPV6;
}

static __always_inline void mapped_address(__u8 *to, __be32 address)
{
	__be32 *words = (__be32 *)to;

	words[2] = bpf_htonl(0xffff);
	words[3] = address;
}

static __always_inline int arrival_ip4(const struct cursor *c, __u32 frame, bool gso,
				       struct tunnel_index_key *key, struct arrival *a)
{
	struct iphdr *ip = bytes_at(c, ETH_HLEN, sizeof(*ip));
	__u32 length;

	if (!ip)
		return PARSE_SHORT;
	if (!may_be_tunnel(ip->protocol) || *(__u8 *)ip != 0x45 ||
	    (ip->frag_off & bpf_htons(0x3fff)))
		return ARRIVAL_PASS;
	length = bpf_ntohs(ip->tot_len);
	if (!length && gso)
		length = frame - ETH_HLEN;
	if (length < sizeof(*ip) || ETH_HLEN + length > frame || ip4_checksum(ip))
		return ARRIVAL_PASS;
	mapped_address(key->local, ip->daddr);
	mapped_address(key->remote, ip->saddr);
	a->outer_proto = ip->protocol;
	a->ecn = ip->tos & ECN_MASK;
	a->inner = ETH_HLEN + sizeof(*ip);
	a->end = ETH_HLEN + length;
	return PARSED;
}

static __always_inline int arrival_ip6(const struct cursor *c, __u32 frame, bool gso,
				       struct tunnel_index_key *key, struct arrival *a)
{
	struct ipv6hdr *ip = bytes_at(c, ETH_HLEN, sizeof(*ip));
	struct tunnel_limit *limit;
	__u32 length;

	if (!ip)
		return PARSE_SHORT;
	a->outer_proto = ip->nexthdr;
	a->inner = ETH_HLEN + sizeof(*ip);
	if (ip->nexthdr == IPPROTO_DSTOPTS) {
		limit = bytes_at(c, a->inner, sizeof(*limit));
		if (!limit)
			return PARSE_SHORT;
		if (limit->length || limit->option != 4 || limit->option_length != 1 ||
		    limit->padding > 1)
			return ARRIVAL_PASS;
		a->outer_proto = limit->next;
		a->inner += sizeof(*limit);
	}
	if (!may_be_tunnel(a->outer_proto) || *(__u8 *)ip >> 4 != 6)
		return ARRIVAL_PASS;
	length = bpf_ntohs(ip->payload_len);
	if (!length && gso)
		length = frame - ETH_HLEN - sizeof(*ip);
	a->end = ETH_HLEN + sizeof(*ip) + length;
	if (a->end > frame)
		return ARRIVAL_PASS;
	__builtin_memcpy(key->local, &ip->daddr, 16);
	__builtin_memcpy(key->remote, &ip->saddr, 16);
	a->ecn = bpf_ntohl(*(__be32 *)ip) >> 20 & ECN_MASK;
	return PARSED;
}

static __always_inline int arrival_vxlan(const struct cursor *c, struct tunnel_index_key *key,
					 struct arrival *a)
{
	struct udp_base *udp;
	struct vxlan *vxlan;

	if (a->inner + sizeof(*udp) + sizeof(*vxlan) > a->end)
		return ARRIVAL_PASS;
	udp = bytes_at(c, a->inner, sizeof(*udp) + sizeof(*vxlan));
	if (!udp)
		return PARSE_SHORT;
	vxlan = (void *)(udp + 1);
	/* Reserved bits are not looked at, nor is a checksum: RFC 7348 lets both be. */
	if (!(vxlan->flags & VXLAN_VNI))
		return ARRIVAL_PASS;
	key->kind = TUNNEL_VXLAN;
	key->port = udp->destination;
	key->id = bpf_ntohl(vxlan->vni) >> 8;
	a->inner += sizeof(*udp) + sizeof(*vxlan);
	return PARSED;
}

static __always_inline int arrival_gre(const struct cursor *c, struct tunnel_index_key *key,
				       struct arrival *a)
{
	struct gre_base *gre = bytes_at(c, a->inner, sizeof(*gre));
	__be16 flags;
	__be32 *word;

	if (!gre)
		return a->inner + sizeof(*gre) > a->end ? ARRIVAL_PASS : PARSE_SHORT;
	flags = gre->flags;
	a->proto = gre->proto;
	if (flags & GRE_UNKNOWN)
		return ARRIVAL_PASS;
	a->inner += sizeof(*gre);
	if (flags & GRE_CHECKSUM)
		a->inner += 4;
	if (flags & GRE_KEY) {
		word = bytes_at(c, a->inner, sizeof(*word));
		if (!word)
			return a->inner + sizeof(*word) > a->end ? ARRIVAL_PASS : PARSE_SHORT;
		key->id = bpf_ntohl(*word);
		key->flags = TUNNEL_KEY_PRESENT;
		a->inner += sizeof(*word);
	}
	if (flags & GRE_SEQUENCE)
		a->inner += 4;
	if (a->inner > a->end)
		return ARRIVAL_PASS;
	if (a->proto == bpf_htons(ETH_P_TEB)) {
		key->kind = TUNNEL_NVGRE;
		key->id >>= VSID_SHIFT;
		return PARSED;
	}
	key->kind = TUNNEL_GRE;
	return is_ip(a->proto) ? PARSED : ARRIVAL_PASS;
}

static __always_inline int arrival_in_ip(const struct cursor *c, __be16 proto, __u32 frame,
					 bool gso, struct tunnel_index_key *key, struct arrival *a)
{
	int rc = proto == bpf_htons(ETH_P_IP) ? arrival_ip4(c, frame, gso, key, a)
					      : arrival_ip6(c, frame, gso, key, a);

	if (rc != PARSED)
		return rc;
	switch (a->outer_proto) {
	case IPPROTO_UDP:
		return arrival_vxlan(c, key, a);
	case IPPROTO_GRE:
		return arrival_gre(c, key, a);
	case IPPROTO_IPIP:
		a->proto = bpf_htons(ETH_P_IP);
		break;
	default:
		a->proto = bpf_htons(ETH_P_IPV6);
	}
	key->kind = TUNNEL_IPIP;
	return PARSED;
}

/* Explicit nulls name nobody, wherever they are (RFC 4182). */
static __always_inline int arrival_labels(const struct cursor *c, __u32 frame, __u32 ifindex,
					  struct tunnel_index_key *key, struct arrival *a)
{
	__u32 label, count = 0;
	__be32 *entry;
	__u8 *version;

	key->kind = TUNNEL_MPLS;
	key->underlay = ifindex;
	a->end = frame;
	a->inner = ETH_HLEN;
	for (int i = 0; i <= LABELS_MAX; i++) {
		entry = bytes_at(c, a->inner, sizeof(*entry));
		if (!entry)
			return a->inner + sizeof(*entry) > frame ? ARRIVAL_PASS : PARSE_SHORT;
		label = LABEL_OF(*entry);
		if (!i)
			a->label_ttl = LABEL_TTL(*entry);
		a->inner += sizeof(*entry);
		if (label != LABEL_IPV4 && label != LABEL_IPV6) {
			if (count == LABELS_MAX)
				return ARRIVAL_PASS;
			key->labels[count & (LABELS_MAX - 1)] = label;
			count++;
		}
		if (*entry & LABEL_BOTTOM)
			goto bottom;
	}
	return ARRIVAL_PASS;
bottom:
	version = bytes_at(c, a->inner, sizeof(*version));
	if (!version)
		return a->inner + sizeof(*version) > frame ? ARRIVAL_PASS : PARSE_SHORT;
	/* Of another version: not IP, which arrival_packet finds out. */
	a->proto = *version >> 4 == 6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	return PARSED;
}

static __always_inline int arrival_outside(struct __sk_buff *skb, struct tunnel_index_key *key,
					   struct arrival *a)
{
	struct cursor c = cursor_of(skb);

	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memset(a, 0, sizeof(*a));
	if (skb->protocol == bpf_htons(ETH_P_MPLS_UC))
		return arrival_labels(&c, skb->len, skb->ifindex, key, a);
	return arrival_in_ip(&c, skb->protocol, skb->len, skb->gso_size, key, a);
}

#endif
