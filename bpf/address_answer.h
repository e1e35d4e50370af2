/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Uplink: answers ARP and neighbour discovery for the addresses of services, in place, so that no
 * VM that holds the address does.
 */
#ifndef LASTHOP_ADDRESS_ANSWER_H
#define LASTHOP_ADDRESS_ANSWER_H

#include <linux/if_ether.h>
#include <linux/ipv6.h>
#include "checksum.h"
#include "encapsulation.h"
#include "frame.h"
#include "parse.h"
#include "service.h"
#include "vm.h"

/* linux/if_arp.h would pull in the C library's headers. */
#define ARPHRD_ETHER  1
#define ARPOP_REQUEST 1
#define ARPOP_REPLY   2

#define ND_SOLICITATION	 135 /* RFC 4861 4.3 */
#define ND_ADVERTISEMENT 136
#define ND_SOLICITED	 0x40
#define ND_OVERRIDE	 0x20
#define ND_SOURCE_MAC	 1 /* option types */
#define ND_TARGET_MAC	 2
#define ND_HOP_LIMIT	 255 /* nobody else's link: RFC 4861 7.1.1 */

/* RFC 826, of IPv4 on Ethernet */
struct arp_packet {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_bytes;
	__u8 protocol_bytes;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

struct nd_packet {
	struct ipv6hdr ip;
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__u8 flags;
	__u8 reserved[3];
	__u8 target[16];
};

/* Behind it, if it is there. */
struct nd_option {
	__u8 type;
	__u8 length; /* in 8 bytes */
	__u8 mac[6];
};

/* What is asked, and where in the frame that stands. */
struct question {
	__u32 offset; /* of what is behind the Ethernet header and its tags */
	__u32 service;
	__u8 mac[6];	  /* the answer */
	__u8 with_option; /* ND: tells the asker's MAC, and so does the answer */
};

/*
 * A question to all, or to one of ours. To a bridge port that does not forward an answer would show
 * our MAC where it cannot be reached.
 */
static __always_inline bool is_asked_here(const struct packet *p, const struct interface *in)
{
	return !(in->flags & INTERFACE_PORT_BLOCKED) && source_is_other(p, in) &&
	       !vm_id(in->zone, p->source) &&
	       (mac_is_group(p->destination) || is_for_host_mac(p, in) ||
		vm_id(in->zone, p->destination));
}

/* The service's answer to a question for this address: false if it gives none. */
static __always_inline bool answer_mac(const struct interface *in, const __u32 *address,
				       struct question *q)
{
	__u32 index = service_of_address(in->zone, address);
	struct service *service = bpf_map_lookup_elem(&services, &index);

	if (!index || !service || !(service->flags & SERVICE_ANSWERED))
		return false;
	q->service = index;
	mac_copy(q->mac, mac_is_zero(service->answer_mac) ? in->host_mac : service->answer_mac);
	return !mac_is_zero(q->mac);
}

/* Ethernet and at most two tags: what follows, 0 for what is not looked at. */
static __always_inline __be16 question_proto(void *ctx, bool xdp, const struct packet *p,
					     struct question *q)
{
	struct vlan_header vlan;
	__be16 proto;

	q->offset = ETH_HLEN;
	if (load(ctx, xdp, offsetof(struct ethhdr, h_proto), &proto, sizeof(proto)))
		return 0;
	for (int i = 0; i < 2 && is_vlan(proto); i++) {
		if (load(ctx, xdp, q->offset, &vlan, sizeof(vlan)))
			return 0;
		proto = vlan.proto;
		q->offset += sizeof(vlan);
	}
	return proto;
}

static __always_inline bool answer_arp(void *ctx, bool xdp, const struct interface *in,
				       struct question *q)
{
	__u32 address[4] = {0, 0, bpf_htonl(0xffff), 0}, sender;
	struct arp_packet arp;

	if (load(ctx, xdp, q->offset, &arp, sizeof(arp)))
		return false;
	__builtin_memcpy(&address[3], arp.target, 4);
	__builtin_memcpy(&sender, arp.sender, 4);
	/* Somebody who announces the address as his own is not answered: VMs do, too. */
	if (arp.hardware != bpf_htons(ARPHRD_ETHER) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_bytes != 6 || arp.protocol_bytes != 4 ||
	    arp.operation != bpf_htons(ARPOP_REQUEST) || sender == address[3] ||
	    !answer_mac(in, address, q))
		return false;
	arp.operation = bpf_htons(ARPOP_REPLY);
	__builtin_memcpy(arp.target_mac, arp.sender_mac, 10);
	__builtin_memcpy(arp.sender_mac, q->mac, 6);
	__builtin_memcpy(arp.sender, &address[3], 4);
	return !store(ctx, xdp, q->offset, &arp, sizeof(arp));
}

/* With its checksum in it: 0xffff if that is right. */
static __always_inline __u16 nd_sum(const struct nd_packet *nd, const struct nd_option *option,
				    bool with_option)
{
	const __u32 before = offsetof(struct nd_packet, ip.saddr);
	__u64 sum = sum_halves(&nd->ip.saddr, sizeof(*nd) - before);

	sum += nd->ip.payload_len + bpf_htons(IPPROTO_ICMPV6);
	return sum_fold(with_option ? sum + sum_halves(option, sizeof(*option)) : sum);
}

/* Multicast, or nobody's: whoever looks whether an address is free has none yet. */
static __always_inline bool nd_asker_is_nobody(const struct nd_packet *nd)
{
	const __be32 *words = nd->ip.saddr.in6_u.u6_addr32;

	return nd->ip.saddr.in6_u.u6_addr8[0] == 0xff ||
	       !(words[0] | words[1] | words[2] | words[3]);
}

static __always_inline bool answer_nd(void *ctx, bool xdp, const struct interface *in,
				      struct question *q)
{
	const __u32 icmp_bytes = sizeof(struct nd_packet) - sizeof(struct ipv6hdr);
	struct nd_option option = {};
	struct nd_packet nd;
	__u32 address[4], bytes;

	if (load(ctx, xdp, q->offset, &nd, sizeof(nd)))
		return false;
	__builtin_memcpy(address, nd.target, 16);
	if (nd.ip.version != 6 || nd.ip.nexthdr != IPPROTO_ICMPV6 || nd.type != ND_SOLICITATION ||
	    nd.code || nd.ip.hop_limit != ND_HOP_LIMIT)
		return false;
	bytes = bpf_ntohs(nd.ip.payload_len);
	q->with_option = bytes >= icmp_bytes + sizeof(option);
	/* The answer is as long as the question, so one that may not be without our MAC needs one
	 * with the asker's. */
	if (nd_asker_is_nobody(&nd))
		return false;
	if (bytes != icmp_bytes + (q->with_option ? sizeof(option) : 0) ||
	    (!q->with_option && nd.ip.daddr.in6_u.u6_addr8[0] == 0xff))
		return false;
	if (q->with_option && (load(ctx, xdp, q->offset + sizeof(nd), &option, sizeof(option)) ||
			       option.type != ND_SOURCE_MAC || option.length != 1))
		return false;
	if (nd_sum(&nd, &option, q->with_option) != 0xffff || !answer_mac(in, address, q))
		return false;
	nd.ip.daddr = nd.ip.saddr;
	__builtin_memcpy(&nd.ip.saddr, address, 16);
	nd.type = ND_ADVERTISEMENT;
	nd.flags = ND_SOLICITED | ND_OVERRIDE;
	nd.checksum = 0;
	if (q->with_option) {
		option.type = ND_TARGET_MAC;
		mac_copy(option.mac, q->mac);
	}
	nd.checksum = ~nd_sum(&nd, &option, q->with_option);
	return !store(ctx, xdp, q->offset, &nd, sizeof(nd)) &&
	       (!q->with_option ||
		!store(ctx, xdp, q->offset + sizeof(nd), &option, sizeof(option)));
}

static __always_inline bool answer_address(void *ctx, bool xdp, const struct packet *p,
					   const struct interface *in, struct decision *d)
{
	struct service_stats *stats;
	struct question q = {};
	__u8 macs[2][6];
	__be16 proto;

	if (!p || !in || !d || p->no_link_layer || !is_asked_here(p, in))
		return false;
	proto = question_proto(ctx, xdp, p, &q);
	if (proto == bpf_htons(ETH_P_ARP)) {
		if (!answer_arp(ctx, xdp, in, &q))
			return false;
	} else if (proto != bpf_htons(ETH_P_IPV6) || !answer_nd(ctx, xdp, in, &q)) {
		return false;
	}
	mac_copy(macs[0], p->source);
	mac_copy(macs[1], q.mac);
	if (store(ctx, xdp, 0, macs, sizeof(macs)))
		return false;
	stats = service_stats_of(q.service);
	bump(stats, answered);
	d->verdict = VERDICT_ANSWER;
	d->out_ifindex = p->ifindex;
	mac_copy(d->out_mac, p->source);
	return true;
}

/* True if the packet is now the answer to itself. */
__noinline int answer_address_skb(struct __sk_buff *skb, const struct packet *p,
				  const struct interface *in, struct decision *d)
{
	return answer_address(skb, false, p, in, d);
}

/*
 * A shared tunnel device sends the answer back into the tunnel that the question came from. For the
 * entries: there is not stack enough for it above.
 */
static __always_inline int answer_encapsulate(struct __sk_buff *skb, const struct interface *in,
					      struct decision *d)
{
	struct encapsulation *e = encapsulation_scratch();
	int found;

	if (!(in->flags & INTERFACE_TUNNEL_KEY))
		return REASON_ADDRESS_ANSWER;
	found = tunnel_key_read(skb);
	if (!e || found < 0 || (found && !tunnel_key_write(skb, &e->tunnel)))
		d->verdict = VERDICT_DROP;
	return REASON_ADDRESS_ANSWER;
}

__noinline int answer_address_xdp(struct xdp_md *ctx, const struct packet *p,
				  const struct interface *in, struct decision *d)
{
	return answer_address(ctx, true, p, in, d);
}

/* Nothing that has a flow. */
static __always_inline bool is_question(const struct control *ctl, int reason)
{
	return ctl->vm_cells &&
	       (reason == REASON_NOT_IP || reason == REASON_MULTICAST || reason == REASON_PROTOCOL);
}

#endif
