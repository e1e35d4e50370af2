/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Puts the outer header on what leaves by a built-in tunnel, and sends it by the underlay. Nothing
 * that comes here is let through to the driver: P would hand it to the host's stack.
 *
 * What is too big for the tunnel's MTU is dropped and counted. Nobody is told: the senders know the
 * MTU from the netdev, and the VMs from the answers of reply_tc.
 */
#ifndef LASTHOP_TUNNEL_OUT_H
#define LASTHOP_TUNNEL_OUT_H

#include "fib.h"
#include "tunnel.h"

struct departure {
	__u8 macs[2 * ETH_ALEN]; /* of the inner frame */
	__be16 proto;		 /* of the inner packet */
	__u8 octets[2];		 /* the packet's first */
	__u8 next_hop[ETH_ALEN];
	__u8 source[ETH_ALEN];
	__u32 room; /* bytes between the Ethernet header and the packet */
	__u32 hash;
	__u32 ifindex; /* to leave by; 0 for the neighbour layer to find out where to */
	__u16 tci[2];  /* of the inner frame's tags, outer first */
	__be16 tag_proto[2];
	__u8 tags;
	__u8 ecn;
	__u8 grown_blindly; /* skb->protocol is still that of the inner packet */
};

static __always_inline bool is_ethernet_inside(const struct tunnel *t)
{
	return t->kind == TUNNEL_VXLAN || t->kind == TUNNEL_NVGRE;
}

static __always_inline __u32 outer_ip_bytes(const struct tunnel *t)
{
	return t->family == 6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* Between the outer IP header and the inner frame or packet. */
static __always_inline __u32 tunnel_header_bytes(const struct tunnel *t)
{
	if (t->kind == TUNNEL_IPIP)
		return 0;
	if (t->kind == TUNNEL_VXLAN)
		return sizeof(struct udp_base) + sizeof(struct vxlan);
	return t->flags & TUNNEL_KEY_PRESENT ? 8 : 4;
}

/* Takes the tags out of the metadata: they go into the inner frame. */
static __always_inline bool departure_untag(struct __sk_buff *skb, struct departure *d)
{
	for (int i = 0; i < 2; i++) {
		if (!skb->vlan_present)
			return true;
		d->tci[i] = skb->vlan_tci;
		d->tag_proto[i] = skb->vlan_proto;
		d->tags = i + 1;
		if (bpf_skb_vlan_pop(skb))
			return false;
	}
	return !skb->vlan_present;
}

static __always_inline bool departure_read(struct __sk_buff *skb, const struct tunnel *t,
					   struct departure *d)
{
	if (!departure_untag(skb, d) || bpf_skb_load_bytes(skb, 0, d, 2 * ETH_ALEN + 4))
		return false;
	if (d->proto == bpf_htons(ETH_P_IP))
		d->ecn = d->octets[1] & ECN_MASK;
	else if (d->proto == bpf_htons(ETH_P_IPV6))
		d->ecn = d->octets[1] >> 4 & ECN_MASK;
	d->room = outer_ip_bytes(t) + tunnel_header_bytes(t);
	if (is_ethernet_inside(t))
		d->room += ETH_HLEN + sizeof(struct vlan_tagged) * d->tags;
	else if (d->tags || !is_ip(d->proto) || d->proto != skb->protocol)
		return false;
	return true;
}

/* Its segments are checked against the tunnel's MTU, which is the underlay's less the headers. */
static __always_inline bool departure_fits(struct __sk_buff *skb, const struct tunnel *t,
					   __u32 room)
{
	/* In: a length, or 0 for that of the packet. Out: the MTU. */
	__u32 own = 0, below = 0;

	if (skb->gso_size)
		return !bpf_check_mtu(skb, t->ifindex, &own, 0, BPF_MTU_CHK_SEGS);
	return !bpf_check_mtu(skb, t->ifindex, &own, 0, 0) &&
	       !bpf_check_mtu(skb, t->underlay, &below, room, 0);
}

/*
 * Where to. Without forwarding on the underlay, as on a host that only bridges, the routing tables
 * do not answer here; then, or if the neighbour is not known yet, the neighbour layer looks itself.
 */
static __always_inline bool departure_route(struct __sk_buff *skb, const struct tunnel *t,
					    struct departure *d)
{
	struct bpf_fib_lookup fib = {.ifindex = t->underlay};
	__u32 length = skb->len - ETH_HLEN + d->room;
	long rc;

	if (t->family == 4) {
		fib.family = FIB_INET;
		fib.ipv4_src = *(const __be32 *)(t->local + 12);
		fib.ipv4_dst = *(const __be32 *)(t->remote + 12);
	} else {
		fib.family = FIB_INET6;
		__builtin_memcpy(fib.ipv6_src, t->local, 16);
		__builtin_memcpy(fib.ipv6_dst, t->remote, 16);
	}
	if (!skb->gso_size && length <= 0xffff)
		fib.tot_len = length;
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_OUTPUT);
	if (rc == BPF_FIB_LKUP_RET_NO_NEIGH || rc == BPF_FIB_LKUP_RET_FWD_DISABLED)
		return true;
	if (rc != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	mac_copy(d->next_hop, fib.dmac);
	mac_copy(d->source, fib.smac);
	d->ifindex = fib.ifindex;
	return true;
}

static __always_inline __u64 room_flags(const struct tunnel *t, const struct departure *d)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | (t->family == 6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
								 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);

	if (t->kind == TUNNEL_VXLAN)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	else if (t->kind != TUNNEL_IPIP)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_GRE;
	if (is_ethernet_inside(t))
		flags |= BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
			 BPF_F_ADJ_ROOM_ENCAP_L2((__u64)ETH_HLEN +
						 sizeof(struct vlan_tagged) * d->tags);
	return flags;
}

/*
 * The helper for encapsulation knows IP only, and nothing that is marked as encapsulated already (a
 * packet that the host forwards from another tunnel may be). Such a frame just gets more bytes in
 * front; what has to be segmented cannot go that way.
 */
static __always_inline bool departure_grow(struct __sk_buff *skb, const struct tunnel *t,
					   struct departure *d)
{
	if (!bpf_skb_adjust_room(skb, d->room, BPF_ADJ_ROOM_MAC, room_flags(t, d)))
		return true;
	d->grown_blindly = true;
	return !skb->gso_size && !bpf_skb_change_head(skb, d->room, 0);
}

/* A length that no field holds is written as 0: the segments get their own. */
static __always_inline __be16 length_field(__u32 length)
{
	return length > 0xffff ? 0 : bpf_htons(length);
}

static __always_inline __u8 outer_protocol(const struct tunnel *t, const struct departure *d)
{
	if (t->kind == TUNNEL_VXLAN)
		return IPPROTO_UDP;
	if (t->kind != TUNNEL_IPIP)
		return IPPROTO_GRE;
	return d->proto == bpf_htons(ETH_P_IPV6) ? IPPROTO_IPV6 : IPPROTO_IPIP;
}

/* Never fragmented, so its identification may be any (RFC 6864), and one keeps GRO together. */
static __always_inline bool write_outer4(const struct cursor *c, const struct tunnel *t,
					 const struct departure *d, __u32 length)
{
	struct iphdr *ip = bytes_at(c, ETH_HLEN, sizeof(*ip));

	if (!ip)
		return false;
	*(__u8 *)ip = 0x45;
	ip->tos = (t->tos & DSCP_MASK) | d->ecn;
	ip->tot_len = length_field(length);
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = t->ttl;
	ip->protocol = outer_protocol(t, d);
	ip->check = 0;
	ip->saddr = *(const __be32 *)(t->local + 12);
	ip->daddr = *(const __be32 *)(t->remote + 12);
	ip->check = ip4_checksum(ip);
	return true;
}

/* The flow label tells the inner flows apart for who balances load by it, RFC 6438. */
static __always_inline bool write_outer6(const struct cursor *c, const struct tunnel *t,
					 const struct departure *d, __u32 length)
{
	struct ipv6hdr *ip = bytes_at(c, ETH_HLEN, sizeof(*ip));
	__u32 class = (t->tos & DSCP_MASK) | d->ecn;

	if (!ip)
		return false;
	*(__be32 *)ip = bpf_htonl(6u << 28 | class << 20 | (d->hash & 0xfffff));
	ip->payload_len = length_field(length - sizeof(*ip));
	ip->nexthdr = outer_protocol(t, d);
	ip->hop_limit = t->ttl;
	__builtin_memcpy(&ip->saddr, t->local, 16);
	__builtin_memcpy(&ip->daddr, t->remote, 16);
	return true;
}

/* The source port tells the inner flows apart. Without a checksum, over IPv6 as RFC 6935 allows. */
static __always_inline bool write_vxlan(const struct cursor *c, const struct tunnel *t,
					const struct departure *d, __u32 at, __u32 length)
{
	struct udp_base *udp = bytes_at(c, at, sizeof(*udp) + sizeof(struct vxlan));
	struct vxlan *vxlan = (void *)(udp + 1);

	if (!udp)
		return false;
	udp->source = bpf_htons(49152 + ((d->hash ^ d->hash >> 16) & 0x3fff));
	udp->destination = t->port;
	udp->length = length_field(length - (at - ETH_HLEN));
	udp->check = 0;
	vxlan->flags = VXLAN_VNI;
	vxlan->vni = bpf_htonl(t->id << 8);
	return true;
}

static __always_inline bool write_gre(const struct cursor *c, const struct tunnel *t,
				      const struct departure *d, __u32 at)
{
	struct gre_base *gre = bytes_at(c, at, sizeof(*gre));
	__be32 *key;

	if (!gre)
		return false;
	gre->flags = t->flags & TUNNEL_KEY_PRESENT ? GRE_KEY : 0;
	gre->proto = t->kind == TUNNEL_NVGRE ? bpf_htons(ETH_P_TEB) : d->proto;
	if (!(t->flags & TUNNEL_KEY_PRESENT))
		return true;
	key = bytes_at(c, at + sizeof(*gre), sizeof(*key));
	if (!key)
		return false;
	*key = bpf_htonl(t->kind == TUNNEL_NVGRE ? t->id << VSID_SHIFT : t->id);
	return true;
}

static __always_inline bool write_inner_frame(const struct cursor *c, const struct departure *d,
					      __u32 at)
{
	__u8 *macs = bytes_at(c, at, sizeof(d->macs));
	__be16 *word;

	if (!macs)
		return false;
	mac_copy(macs, d->macs);
	mac_copy(macs + ETH_ALEN, d->macs + ETH_ALEN);
	at += sizeof(d->macs);
	for (int i = 0; i < 2; i++) {
		if (i == d->tags)
			break;
		word = bytes_at(c, at, 2 * sizeof(*word));
		if (!word)
			return false;
		word[0] = d->tag_proto[i];
		word[1] = bpf_htons(d->tci[i]);
		at += 2 * sizeof(*word);
	}
	word = bytes_at(c, at, sizeof(*word));
	if (!word)
		return false;
	*word = d->proto;
	return true;
}

static __always_inline bool write_headers(struct __sk_buff *skb, const struct tunnel *t,
					  const struct departure *d)
{
	__u32 at = ETH_HLEN + outer_ip_bytes(t), length = skb->len - ETH_HLEN;
	struct cursor c = cursor_of(skb);
	struct ethhdr *eth = bytes_at(&c, 0, sizeof(*eth));

	if (!eth)
		return false;
	mac_copy(eth->h_dest, d->next_hop);
	mac_copy(eth->h_source, d->source);
	eth->h_proto = t->family == 6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	if (t->family == 6 ? !write_outer6(&c, t, d, length) : !write_outer4(&c, t, d, length))
		return false;
	if (t->kind == TUNNEL_IPIP)
		return true;
	if (t->kind == TUNNEL_VXLAN ? !write_vxlan(&c, t, d, at, length) : !write_gre(&c, t, d, at))
		return false;
	return !is_ethernet_inside(t) || write_inner_frame(&c, d, at + tunnel_header_bytes(t));
}

static __always_inline int tunnel_send(struct __sk_buff *skb, const struct tunnel *t)
{
	__be16 outer = t->family == 6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	struct departure d = {};

	if (t->kind == TUNNEL_NONE || t->kind >= TUNNEL_MPLS || !departure_read(skb, t, &d) ||
	    !departure_fits(skb, t, d.room) || !departure_route(skb, t, &d))
		return TC_ACT_SHOT;
	d.hash = bpf_get_hash_recalc(skb);
	if (!departure_grow(skb, t, &d) || !write_headers(skb, t, &d))
		return TC_ACT_SHOT;
	if (d.grown_blindly && !frame_becomes(skb, outer))
		return TC_ACT_SHOT;
	return d.ifindex ? bpf_redirect(d.ifindex, 0) : bpf_redirect_neigh(t->underlay, NULL, 0, 0);
}

/*
 * MPLS. P's end of the pair: the kernel has segmented and checksummed on the way here, as nothing
 * would behind labels.
 */
static __always_inline bool label_ttl(struct __sk_buff *skb, const struct tunnel *t, __u8 *ttl)
{
	__u32 at = skb->protocol == bpf_htons(ETH_P_IP) ? ETH_HLEN + 8 : ETH_HLEN + 7;

	*ttl = t->ttl;
	return !(t->flags & TUNNEL_TTL_UNIFORM) || !bpf_skb_load_bytes(skb, at, ttl, 1);
}

static __always_inline int labels_send(struct __sk_buff *skb, const struct tunnel *t)
{
	__u32 count = t->label_count, entry, mtu = 0;
	struct ethhdr *eth;
	struct cursor c;
	__be32 *label;
	__u8 ttl;

	if (t->kind != TUNNEL_MPLS || !count || count > LABELS_MAX || skb->vlan_present ||
	    skb->gso_size || !is_ip(skb->protocol) || !label_ttl(skb, t, &ttl))
		return TC_ACT_SHOT;
	if (bpf_check_mtu(skb, t->underlay, &mtu, count * sizeof(*label), 0) ||
	    bpf_skb_adjust_room(skb, count * sizeof(*label), BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	c = cursor_of(skb);
	eth = bytes_at(&c, 0, sizeof(*eth));
	if (!eth)
		return TC_ACT_SHOT;
	mac_copy(eth->h_dest, t->next_hop);
	mac_copy(eth->h_source, t->underlay_mac);
	eth->h_proto = bpf_htons(ETH_P_MPLS_UC);
	for (int i = 0; i < LABELS_MAX; i++) {
		if (i == count)
			break;
		label = bytes_at(&c, ETH_HLEN + i * sizeof(*label), sizeof(*label));
		if (!label)
			return TC_ACT_SHOT;
		entry = t->labels[i] << LABEL_SHIFT | (t->tos & 7) << LABEL_TC_SHIFT | ttl;
		*label = bpf_htonl(entry) | (i + 1 == count ? LABEL_BOTTOM : 0);
	}
	return bpf_redirect(t->underlay, 0);
}

#endif
