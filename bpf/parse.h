/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * One packet goes in, its `offset` is advanced by each parser; out comes PARSED, what is needed to
 * go on, or the reason why the packet passes.
 *
 * The steps are small and meet only in struct packet, so that the verifier sees each of them once
 * and not once for every way that leads there.
 */
#ifndef LASTHOP_PARSE_H
#define LASTHOP_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include "encapsulation.h"
#include "frame.h"
#include "fragment.h"
#include "transport.h"

#define IPV6_EXTENSIONS_MAX 6
#define IP_OFFSET_MASK	    0x1fff
#define IP_MORE_FRAGMENTS   0x2000

struct vlan_header {
	__be16 tci;
	__be16 proto;
};

struct ipv6_extension {
	__u8 next;
	__u8 length; /* in 8 bytes beyond the first 8; for AH in 4 bytes beyond the first 8 */
	__u8 type;
	__u8 segments_left;
};

struct ipv6_fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

static __always_inline bool is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

/* A tag with VID 0 carries only a priority: it does not tell networks apart. */
static __always_inline bool tag_add(struct packet *p, __be16 proto, __u16 tci)
{
	__u16 vid = tci & 0x0fff;

	if (p->tag_count == 2)
		return false;
	p->tag_count++;
	if (!vid)
		return true;
	if (!p->tags[0].proto) {
		p->tags[0].proto = proto;
		p->tags[0].vid = vid;
	} else {
		p->tags[1].proto = proto;
		p->tags[1].vid = vid;
	}
	return true;
}

static __always_inline int parse_ethernet(const struct cursor *c, struct packet *p, __be16 *proto)
{
	struct ethhdr *eth = c->data;

	if ((void *)(eth + 1) > c->end)
		return PARSE_SHORT;
	mac_copy(p->destination, eth->h_dest);
	mac_copy(p->source, eth->h_source);
	*proto = eth->h_proto;
	p->offset = sizeof(*eth);
	for (int i = 0; i < 3; i++) {
		struct vlan_header *vlan;

		if (!is_vlan(*proto))
			return PARSED;
		vlan = header(c, p, sizeof(*vlan));
		if (!vlan)
			return PARSE_SHORT;
		if (!tag_add(p, *proto, bpf_ntohs(vlan->tci)))
			return REASON_VLAN_DEPTH;
		*proto = vlan->proto;
		p->offset += sizeof(*vlan);
	}
	return REASON_VLAN_DEPTH;
}

static __always_inline bool ip4_is_group(__be32 address)
{
	return (address & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) ||
	       address == bpf_htonl(0xffffffff);
}

/* Unspecified, loopback, multicast: nobody's source. */
static __always_inline bool ip4_is_martian_source(__be32 address)
{
	return !address || (address & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) ||
	       ip4_is_group(address);
}

static __always_inline bool ip6_is_martian_source(const struct in6_addr *a)
{
	return a->in6_u.u6_addr8[0] == 0xff ||
	       (!a->in6_u.u6_addr32[0] && !a->in6_u.u6_addr32[1] && !a->in6_u.u6_addr32[2] &&
		(a->in6_u.u6_addr32[3] & bpf_htonl(0xfffffffe)) == 0);
}

static __always_inline void key4_addresses(struct packet *p, const struct iphdr *h)
{
	p->key_words[0] = source_is_local(p) ? h->saddr | (__u64)h->daddr << 32
					     : h->daddr | (__u64)h->saddr << 32;
}

static __always_inline void key6_addresses(struct packet *p, const struct ipv6hdr *h)
{
	const __u64 *source = (const __u64 *)&h->saddr, *destination = (const __u64 *)&h->daddr;

	p->key_words[0] = source_is_local(p) ? source[0] : destination[0];
	p->key_words[1] = source_is_local(p) ? source[1] : destination[1];
	p->key_words[2] = source_is_local(p) ? destination[0] : source[0];
	p->key_words[3] = source_is_local(p) ? destination[1] : source[1];
}

/* `room`: bytes that the frame really has from here on; a quote is cut short and has no bound. */
static __always_inline int parse_ipv4(const struct cursor *c, struct packet *p, __u32 room)
{
	struct iphdr *h = header(c, p, sizeof(*h));
	__u32 header_bytes, total;
	__u16 fragment;

	if (!h)
		return PARSE_SHORT;
	header_bytes = h->ihl * 4;
	total = bpf_ntohs(h->tot_len);
	if (h->version != 4 || header_bytes < sizeof(*h))
		return REASON_MALFORMED;
	if (!p->quoted) {
		/* BIG TCP leaves the length out of a segment that does not fit in it. */
		if (!total && room > 0xffff)
			total = room;
		if (total < header_bytes || total > room)
			return REASON_MALFORMED;
		p->ttl = h->ttl;
	}
	if (ip4_is_martian_source(h->saddr))
		return REASON_MALFORMED;
	if (ip4_is_group(h->daddr))
		return REASON_MULTICAST;
	fragment = bpf_ntohs(h->frag_off);
	p->proto = h->protocol;
	p->payload_bytes = total - header_bytes;
	p->fragment_id = h->id;
	p->fragment_offset = fragment & IP_OFFSET_MASK;
	p->more_fragments = !!(fragment & IP_MORE_FRAGMENTS);
	key4_addresses(p, h);
	p->offset += header_bytes;
	return PARSED;
}

static __always_inline bool is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_DSTOPTS || proto == IPPROTO_ROUTING ||
	       proto == IPPROTO_AH || proto == IPPROTO_FRAGMENT;
}

static __always_inline int parse_ipv6(const struct cursor *c, struct packet *p, __u32 room)
{
	struct ipv6hdr *h = header(c, p, sizeof(*h));

	if (!h)
		return PARSE_SHORT;
	if (h->version != 6)
		return REASON_MALFORMED;
	p->payload_bytes = bpf_ntohs(h->payload_len);
	if (!p->quoted) {
		if (!p->payload_bytes && room > 0xffff)
			p->payload_bytes = room - sizeof(*h);
		if (p->payload_bytes + sizeof(*h) > room)
			return REASON_MALFORMED;
		p->ttl = h->hop_limit;
	}
	if (ip6_is_martian_source(&h->saddr))
		return REASON_MALFORMED;
	if (h->daddr.in6_u.u6_addr8[0] == 0xff)
		return REASON_MULTICAST;
	key6_addresses(p, h);
	p->proto = h->nexthdr;
	p->fragment_offset = 0;
	p->more_fragments = 0;
	p->offset += sizeof(*h);
	return is_extension(p->proto) ? PARSE_EXTENSIONS : PARSED;
}

/* One extension header. PARSE_EXTENSIONS: another follows. */
static __always_inline int parse_extension(const struct cursor *c, struct packet *p)
{
	struct ipv6_extension *x = header(c, p, 8); /* none is shorter */
	struct ipv6_fragment *fragment = (struct ipv6_fragment *)x;
	__u32 length = sizeof(*fragment);

	if (!x)
		return PARSE_SHORT;
	if (p->proto == IPPROTO_FRAGMENT) {
		if (p->more_fragments)
			return REASON_MALFORMED;
		p->fragment_id = fragment->id;
		p->fragment_offset = bpf_ntohs(fragment->offset) >> 3;
		p->more_fragments = bpf_ntohs(fragment->offset) & 1;
	} else {
		/* With segments left the destination is not the final one. */
		if (p->proto == IPPROTO_ROUTING && x->segments_left)
			return REASON_EXTENSION_HEADERS;
		length = p->proto == IPPROTO_AH ? (x->length + 2) * 4 : (x->length + 1) * 8;
	}
	if (!p->quoted) {
		if (p->payload_bytes < length)
			return REASON_MALFORMED;
		p->payload_bytes -= length;
	}
	p->proto = x->next;
	p->offset += length;
	if (p->offset > OFFSET_MASK)
		return REASON_EXTENSION_HEADERS;
	/* What follows a later fragment's header is payload, not another header. */
	return is_extension(p->proto) && !p->fragment_offset ? PARSE_EXTENSIONS : PARSED;
}

static __always_inline int parse_extensions(const struct cursor *c, struct packet *p)
{
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		int rc = parse_extension(c, p);

		if (rc != PARSE_EXTENSIONS)
			return rc;
	}
	return REASON_EXTENSION_HEADERS;
}

/* What is behind the IP headers. Later fragments have no ports: those of the first are used. */
static __always_inline int parse_datagram(const struct cursor *c, struct packet *p)
{
	int rc = PARSED;

	if (p->fragment_offset) {
		if (!fragment_find(p))
			return REASON_FRAGMENT;
		p->kind = PACKET_FRAGMENT;
	} else {
		rc = parse_transport(c, p);
		if (rc != PARSED)
			return rc;
	}
	key_ports(p, p->source_port, p->destination_port);
	if (p->more_fragments && !p->fragment_offset && !p->quoted)
		fragment_note(p);
	return PARSED;
}

/*
 * An XFRM interface has no link layer, yet what it decrypted still has the Ethernet header that the
 * encrypted packet came with. True if that stands in front, and not an IP header of this length.
 */
static __always_inline bool is_behind_ethernet(const struct cursor *c, struct packet *p,
					       __be16 proto)
{
	__u8 *octets = header(c, p, ETH_HLEN + 6);
	__u8 version = proto == bpf_htons(ETH_P_IP) ? 4 : 6;
	__u32 length;

	if (!octets || *(__be16 *)(octets + 12) != proto || octets[ETH_HLEN] >> 4 != version)
		return false;
	length = version == 4 ? bpf_ntohs(*(__be16 *)(octets + 2))
			      : bpf_ntohs(*(__be16 *)(octets + 4)) + sizeof(struct ipv6hdr);
	return octets[0] >> 4 != version || length != p->length_bytes;
}

/*
 * Ethernet, tags, and the fixed IP header. `proto` is what an interface without a link layer says
 * of its packet.
 */
static __always_inline int parse_outer(const struct cursor *c, struct packet *p, __be16 proto)
{
	__u32 room;
	int rc;

	if (!p->no_link_layer) {
		rc = parse_ethernet(c, p, &proto);
		if (rc != PARSED)
			return rc;
		if (mac_is_group(p->destination))
			return REASON_MULTICAST;
	} else if (is_behind_ethernet(c, p, proto)) {
		p->offset += ETH_HLEN;
	}
	p->l3_offset = p->offset;
	room = p->length_bytes - p->offset;
	if (proto == bpf_htons(ETH_P_IP)) {
		p->family = 4;
		return parse_ipv4(c, p, room);
	}
	if (proto == bpf_htons(ETH_P_IPV6)) {
		p->family = 6;
		return parse_ipv6(c, p, room);
	}
	/* A VM's labels would be another's business. */
	if (proto == bpf_htons(ETH_P_MPLS_UC) && !p->local_is_source)
		return PARSE_LABELS;
	return REASON_NOT_IP;
}

/* Labels, and the fixed IP header behind them. */
static __always_inline int parse_labelled(const struct cursor *c, struct packet *p)
{
	int rc = parse_labels(c, p);
	__u32 room;

	if (rc != PARSED)
		return rc;
	room = p->length_bytes - p->offset;
	return p->family == 4 ? parse_ipv4(c, p, room) : parse_ipv6(c, p, room);
}

/*
 * An ICMP error belongs to the flow that it quotes. The quoted packet went the other way, so its
 * sides are swapped.
 */
static __always_inline int parse_quote(const struct cursor *c, struct packet *p)
{
	p->quoted = 1;
	return p->family == 4 ? parse_ipv4(c, p, 0) : parse_ipv6(c, p, 0);
}

#endif
