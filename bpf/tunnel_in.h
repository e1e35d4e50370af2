/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Takes the outer header off what arrives at the underlay for a built-in tunnel. What belongs to
 * none passes untouched: fragments of outer packets, IPv4 options and IPv6 extension headers (but
 * the one that Linux's own tunnels send), packets that are not for this host, malformed outer
 * headers. Of a packet that does belong to one, a broken inside is dropped and counted.
 */
#ifndef LASTHOP_TUNNEL_IN_H
#define LASTHOP_TUNNEL_IN_H

#include "tunnel_outer.h"

/* Linear bytes that hold the outer headers, and the inner ones as far as they are looked at. */
#define ARRIVAL_HEADERS 192

/* Where the packet in the inner frame is. Whether it is well-formed is for its receiver to say. */
static __always_inline int arrival_frame(const struct cursor *c, struct arrival *a)
{
	struct ethhdr *eth = bytes_at(c, a->inner, sizeof(*eth));
	struct vlan_tagged *tag;

	if (a->inner + sizeof(*eth) > a->end)
		return ARRIVAL_BROKEN;
	if (!eth)
		return PARSE_SHORT;
	a->proto = eth->h_proto;
	a->packet = a->inner + sizeof(*eth);
	for (int i = 0; i < 2; i++) {
		if (a->proto != bpf_htons(ETH_P_8021Q) && a->proto != bpf_htons(ETH_P_8021AD))
			break;
		if (a->packet + sizeof(*tag) > a->end)
			return ARRIVAL_BROKEN;
		tag = bytes_at(c, a->packet, sizeof(*tag));
		if (!tag)
			return PARSE_SHORT;
		a->proto = tag->proto;
		a->packet += sizeof(*tag);
	}
	if (!is_ip(a->proto))
		return PARSED;
	if (a->packet + sizeof(struct ipv6hdr) > a->end && a->proto == bpf_htons(ETH_P_IPV6))
		return ARRIVAL_BROKEN;
	if (a->packet + sizeof(struct iphdr) > a->end)
		return ARRIVAL_BROKEN;
	return PARSED;
}

/* The inner packet has to be what the outer header says, and within the outer packet. */
static __always_inline int arrival_packet(const struct cursor *c, struct arrival *a, bool gso)
{
	__u32 length, room = a->end - a->inner;
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	a->packet = a->inner;
	if (a->proto == bpf_htons(ETH_P_IP)) {
		if (room < sizeof(*ip))
			return ARRIVAL_BROKEN;
		ip = bytes_at(c, a->inner, sizeof(*ip));
		if (!ip)
			return PARSE_SHORT;
		length = bpf_ntohs(ip->tot_len);
		if (ip->version != 4 || ip->ihl < 5 || (length < ip->ihl * 4 && !gso))
			return ARRIVAL_BROKEN;
	} else {
		if (room < sizeof(*ip6))
			return ARRIVAL_BROKEN;
		ip6 = bytes_at(c, a->inner, sizeof(*ip6));
		if (!ip6)
			return PARSE_SHORT;
		length = sizeof(*ip6) + bpf_ntohs(ip6->payload_len);
		if (ip6->version != 6)
			return ARRIVAL_BROKEN;
	}
	return length > room ? ARRIVAL_BROKEN : PARSED;
}

/*
 * Veth drops, and counts where nobody looks, what comes from P and is bigger than X's MTU. And the
 * kernel cannot segment UDP whose skb still says VXLAN.
 */
static __always_inline int arrival_segments(const struct cursor *c, const struct tunnel *t,
					    const struct arrival *a, __u32 gso_size)
{
	__u32 at = a->packet, length = gso_size;
	struct iphdr *ip;
	__u8 proto, *octet;

	if (t->kind == TUNNEL_MPLS)
		return PARSED;
	if (!is_ip(a->proto))
		return ARRIVAL_BROKEN;
	ip = bytes_at(c, at, sizeof(*ip));
	if (!ip)
		return PARSE_SHORT;
	if (a->proto == bpf_htons(ETH_P_IP)) {
		proto = ip->protocol;
		at += ip->ihl * 4;
	} else {
		proto = ((struct ipv6hdr *)ip)->nexthdr;
		at += sizeof(struct ipv6hdr);
	}
	if (proto == IPPROTO_UDP) {
		at += sizeof(struct udp_base);
		if (t->kind == TUNNEL_VXLAN)
			return ARRIVAL_BROKEN;
	} else if (proto == IPPROTO_TCP) {
		octet = bytes_at(c, at + 12, sizeof(*octet));
		if (!octet)
			return PARSE_SHORT;
		at += *octet >> 4 << 2;
	}
	length += at - a->packet;
	return length > t->mtu + sizeof(struct vlan_tagged) ? ARRIVAL_BROKEN : PARSED;
}

static __always_inline int arrival_inside(struct __sk_buff *skb, const struct tunnel *t,
					  struct arrival *a)
{
	struct cursor c = cursor_of(skb);
	int rc;

	if (t->kind == TUNNEL_VXLAN || t->kind == TUNNEL_NVGRE)
		rc = arrival_frame(&c, a);
	else
		rc = arrival_packet(&c, a, skb->gso_size);
	if (rc == PARSED && skb->gso_size)
		rc = arrival_segments(&c, t, a, skb->gso_size);
	return rc;
}

/* RFC 6040 4.2. False: congestion was signalled to who does not listen, which is to be a loss. */
static __always_inline bool ecn_merge(__u8 outer, __u8 inner, __u8 *merged)
{
	*merged = inner;
	if (outer == ECN_CE)
		*merged = ECN_CE;
	else if (outer == 1 && inner == 2)
		*merged = 1;
	return outer != ECN_CE || inner;
}

/* The inner header takes over what happened to the outer one on the way. */
static __noinline int arrival_merge(struct __sk_buff *skb, const struct tunnel *t,
				    const struct arrival *a)
{
	struct cursor c = cursor_of(skb);
	struct iphdr *ip = bytes_at(&c, a->packet, sizeof(*ip));
	bool uniform = t->kind == TUNNEL_MPLS && (t->flags & TUNNEL_TTL_UNIFORM);
	__u8 octets[2], ecn;
	struct ipv6hdr *ip6;

	if (t->kind == TUNNEL_MPLS && !a->label_ttl)
		return ARRIVAL_BROKEN;
	if (a->proto == bpf_htons(ETH_P_IP)) {
		if (!ip || !ecn_merge(a->ecn, ip->tos & ECN_MASK, &ecn))
			return ARRIVAL_BROKEN;
		if (ecn != (ip->tos & ECN_MASK))
			ip4_replace_word(
				ip, (__u16 *)ip,
				bpf_htons(bpf_ntohs(*(__be16 *)ip) ^ (ip->tos & ECN_MASK) ^ ecn));
		/* Never raised: a loop must end. */
		if (uniform && a->label_ttl < ip->ttl)
			ip4_replace_word(ip, (__u16 *)&ip->ttl,
					 bpf_htons(a->label_ttl << 8 | ip->protocol));
		return PARSED;
	}
	ip6 = bytes_at(&c, a->packet, sizeof(*ip6));
	if (!ip6)
		return ARRIVAL_BROKEN;
	octets[0] = ip6->hop_limit;
	octets[1] = ((__u8 *)ip6)[1];
	if (!ecn_merge(a->ecn, octets[1] >> 4 & ECN_MASK, &ecn))
		return ARRIVAL_BROKEN;
	/* No checksum in the header makes up for these. */
	if (uniform && a->label_ttl < octets[0] &&
	    bpf_skb_store_bytes(skb, a->packet + 7, &a->label_ttl, 1, BPF_F_RECOMPUTE_CSUM))
		return ARRIVAL_BROKEN;
	if (ecn == (octets[1] >> 4 & ECN_MASK))
		return PARSED;
	octets[1] = (octets[1] & 0xcf) | ecn << 4;
	if (bpf_skb_store_bytes(skb, a->packet + 1, octets + 1, 1, BPF_F_RECOMPUTE_CSUM))
		return ARRIVAL_BROKEN;
	return PARSED;
}

/*
 * Takes `length` bytes from behind the Ethernet header. The helper wants an IPv6 header's worth to
 * be left where there was one, which an ARP packet is not; a change to IPv4 takes 20 bytes away
 * itself.
 */
static __noinline bool take_off(struct __sk_buff *skb, __u32 length)
{
	const __u32 difference = sizeof(struct ipv6hdr) - sizeof(struct iphdr);

	if (skb->protocol == bpf_htons(ETH_P_IPV6) &&
	    skb->len < ETH_HLEN + length + sizeof(struct ipv6hdr)) {
		if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IP), 0))
			return false;
		length -= difference;
	}
	return !bpf_skb_adjust_room(skb, -(__s32)length, BPF_ADJ_ROOM_MAC,
				    BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* Makes of it the frame that X receives. */
static __noinline bool arrival_unwrap(struct __sk_buff *skb, const struct tunnel *t,
				      const struct arrival *a)
{
	struct ethhdr eth = {.h_source = {0x02, 0x6c, 0x68, 0x00, 0x00, 0x01}};
	__u32 length = a->inner - ETH_HLEN;

	if (t->kind == TUNNEL_VXLAN || t->kind == TUNNEL_NVGRE) {
		if (bpf_skb_load_bytes(skb, a->inner, &eth, sizeof(eth)))
			return false;
		length += ETH_HLEN;
	} else {
		mac_copy(eth.h_dest, t->mac);
		eth.h_proto = a->proto;
	}
	if (t->kind == TUNNEL_MPLS && !frame_becomes(skb, bpf_htons(ETH_P_IP)))
		return false;
	if (!take_off(skb, length) || bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
		return false;
	/* What is segmented next has to say so itself; what X receives is asked there. */
	return !skb->gso_size || skb->protocol == eth.h_proto || frame_becomes(skb, eth.h_proto);
}

/*
 * Segments were made of one packet by GRO, or not yet made of it: the kernel does that on the way
 * from P to X. An skb keeps the mark of its tunnel otherwise, which would mislead a NIC's offloads.
 * With labels there is no such mark.
 */
static __always_inline int tunnel_receive(struct __sk_buff *skb, const struct tunnel *t,
					  struct arrival *a)
{
	int rc = arrival_inside(skb, t, a);

	if (rc == PARSE_SHORT) {
		if (bpf_skb_pull_data(skb, skb->len < ARRIVAL_HEADERS ? skb->len : ARRIVAL_HEADERS))
			return TC_ACT_SHOT;
		rc = arrival_inside(skb, t, a);
	}
	if (rc != PARSED || (is_ip(a->proto) && arrival_merge(skb, t, a) != PARSED))
		return TC_ACT_SHOT;
	/* A tag with VID 0, only a priority. */
	if (skb->vlan_present && bpf_skb_vlan_pop(skb))
		return TC_ACT_SHOT;
	if (!arrival_unwrap(skb, t, a))
		return TC_ACT_SHOT;
	if (skb->gso_size && t->kind != TUNNEL_MPLS)
		return bpf_redirect(t->peer_ifindex, 0);
	return bpf_redirect(t->ifindex, BPF_F_INGRESS);
}

/* The tunnel that this packet belongs to, or NULL. */
static __always_inline struct tunnel *arrival_tunnel(struct __sk_buff *skb, struct arrival *a)
{
	struct tunnel_index_key key;
	__u32 *ifindex, length;
	struct tunnel *t;
	int rc;

	if (skb->pkt_type != PACKET_OURS ||
	    (!is_ip(skb->protocol) && skb->protocol != bpf_htons(ETH_P_MPLS_UC)))
		return NULL;
	/* What has a tag is for the VLAN's netdev, which may be another tunnel's underlay. */
	if (skb->vlan_present && (skb->vlan_tci & VLAN_VID))
		return NULL;
	rc = arrival_outside(skb, &key, a);
	length = skb->len;
	if (rc == PARSE_SHORT && skb->data_end - skb->data < length &&
	    !bpf_skb_pull_data(skb, length < ARRIVAL_HEADERS ? length : ARRIVAL_HEADERS))
		rc = arrival_outside(skb, &key, a);
	if (rc != PARSED)
		return NULL;
	ifindex = bpf_map_lookup_elem(&tunnel_index, &key);
	if (!ifindex)
		return NULL;
	t = bpf_map_lookup_elem(&tunnels, ifindex);
	return t && t->underlay == skb->ifindex ? t : NULL;
}

#endif
