/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Behind the IP headers: ports, what the packet does to a connection, and the flow's key. */
#ifndef LASTHOP_TRANSPORT_H
#define LASTHOP_TRANSPORT_H

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include "frame.h"

struct ports {
	__be16 source;
	__be16 destination;
};

struct udp_header {
	struct ports ports;
	__be16 length;
	__be16 checksum;
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id; /* echo */
	__be16 sequence;
};

struct sctp_header {
	struct ports ports;
	__be32 tag;
	__be32 checksum;
	__u8 chunk;
	__u8 flags;
	__be16 length;
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Ports, zone and proto are the last word of either key. */
static __always_inline void key_ports(struct packet *p, __be16 source, __be16 destination)
{
	__be16 local = source_is_local(p) ? source : destination;
	__be16 remote = source_is_local(p) ? destination : source;
	__u64 word = local | (__u64)remote << 16 | (__u64)p->zone << 32 | (__u64)p->proto << 48;

	if (p->family == 4)
		p->key_words[1] = word;
	else
		p->key_words[4] = word;
	p->keyed = 1;
}

static __always_inline int tcp_read(struct packet *p, const struct tcphdr *h)
{
	__u32 header_bytes = h->doff * 4;
	__u8 flags = ((const __u8 *)h)[13];

	if (header_bytes < sizeof(*h) || p->payload_bytes < header_bytes)
		return REASON_MALFORMED;
	if ((flags & TCP_SYN) && (flags & (TCP_FIN | TCP_RST)))
		return REASON_MALFORMED;
	p->tcp_flags = flags;
	p->fin = flags & TCP_FIN;
	p->seq = bpf_ntohl(h->seq);
	p->ack = bpf_ntohl(h->ack_seq);
	p->seq_end = p->seq + p->payload_bytes - header_bytes + !!(flags & TCP_SYN) +
		     !!(flags & TCP_FIN);
	if (flags & TCP_RST)
		p->kind = PACKET_ABORT;
	else if ((flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		p->kind = PACKET_OPEN;
	else if (flags & TCP_SYN)
		p->kind = PACKET_ANSWER;
	return PARSED;
}

static __always_inline int parse_tcp(const struct cursor *c, struct packet *p)
{
	struct tcphdr *h = header(c, p, sizeof(*h));

	return h ? tcp_read(p, h) : PARSE_SHORT;
}

static __always_inline int udp_read(const struct packet *p, const struct udp_header *h)
{
	__u32 length = bpf_ntohs(h->length);

	if (p->payload_bytes < sizeof(*h))
		return REASON_MALFORMED;
	/* A datagram in fragments is longer than its first; 0 is a jumbogram's (RFC 2675 4). */
	if (!length && p->family == 6)
		return PARSED;
	if (length < sizeof(*h) || (!p->more_fragments && length > p->payload_bytes))
		return REASON_MALFORMED;
	return PARSED;
}

static __always_inline int parse_udp(const struct cursor *c, struct packet *p)
{
	struct udp_header *h = header(c, p, sizeof(*h));

	return h ? udp_read(p, h) : PARSE_SHORT;
}

static __always_inline int parse_sctp(const struct cursor *c, struct packet *p)
{
	struct sctp_header *h = header(c, p, sizeof(*h));

	if (!h || p->payload_bytes < sizeof(*h))
		return h ? REASON_MALFORMED : PARSE_SHORT;
	switch (h->chunk) { /* RFC 9260 3.2 */
	case 1:
		p->kind = PACKET_OPEN;
		break;
	case 2:
		p->kind = PACKET_ANSWER;
		break;
	case 6:	 /* ABORT */
	case 14: /* SHUTDOWN COMPLETE */
		p->kind = PACKET_ABORT;
		break;
	}
	return PARSED;
}

static __always_inline bool icmp_is_error(__u8 family, __u8 type)
{
	if (family == 4) /* unreachable, source quench, time exceeded, parameter problem */
		return type == 3 || type == 4 || type == 11 || type == 12;
	return type >= 1 && type <= 4;
}

static __always_inline int parse_icmp(const struct cursor *c, struct packet *p)
{
	struct icmp_header *h = header(c, p, sizeof(*h));
	__u8 request = p->family == 4 ? 8 : 128, reply = p->family == 4 ? 0 : 129;

	if (!h)
		return PARSE_SHORT;
	if (!p->quoted && p->payload_bytes < sizeof(*h))
		return REASON_MALFORMED;
	p->source_port = 0;
	p->destination_port = 0;
	if (h->type == request) {
		p->source_port = h->id;
		p->kind = PACKET_OPEN;
		return PARSED;
	}
	if (h->type == reply) {
		p->destination_port = h->id;
		p->kind = PACKET_ANSWER;
		return PARSED;
	}
	if (!icmp_is_error(p->family, h->type) || p->quoted)
		return REASON_PROTOCOL;
	p->kind = PACKET_ERROR;
	p->offset += sizeof(*h);
	return PARSE_QUOTE;
}

/* A quote holds at least 8 bytes of it (RFC 792): the ports, no more. */
static __always_inline int parse_transport(const struct cursor *c, struct packet *p)
{
	__u8 icmp = p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	struct ports *ports;

	if (p->proto == icmp)
		return parse_icmp(c, p);
	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != IPPROTO_SCTP)
		return REASON_PROTOCOL;
	ports = header(c, p, sizeof(*ports));
	if (!ports)
		return PARSE_SHORT;
	p->source_port = ports->source;
	p->destination_port = ports->destination;
	if (p->quoted)
		return PARSED;
	if (p->proto == IPPROTO_TCP)
		return parse_tcp(c, p);
	if (p->proto == IPPROTO_UDP)
		return parse_udp(c, p);
	return parse_sctp(c, p);
}

/*
 * Most packets: worth a way without a call, which costs 10 ns. On an uplink that is TCP alone: what
 * follows there is long, and the verifier would walk it once more for each way that leads to it.
 */
static __always_inline bool is_whole(const struct packet *p, bool local_is_source)
{
	return (p->proto == IPPROTO_TCP || (local_is_source && p->proto == IPPROTO_UDP)) &&
	       !p->fragment_offset && !p->more_fragments;
}

static __always_inline int parse_whole(const struct cursor *c, struct packet *p,
				       bool local_is_source)
{
	struct udp_header *udp;
	struct tcphdr *tcp;

	if (local_is_source && p->proto == IPPROTO_UDP) {
		udp = header(c, p, sizeof(*udp));
		if (!udp)
			return PARSE_SHORT;
		key_ports(p, udp->ports.source, udp->ports.destination);
		return udp_read(p, udp);
	}
	tcp = header(c, p, sizeof(*tcp));
	if (!tcp)
		return PARSE_SHORT;
	key_ports(p, tcp->source, tcp->dest);
	return tcp_read(p, tcp);
}

#endif
