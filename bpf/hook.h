/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Around every decision: what a hook knows before it, the parsing of its kind of packet, the count.
 */
#ifndef LASTHOP_HOOK_H
#define LASTHOP_HOOK_H

#include "count.h"
#include "frame.h"
#include "interface.h"
#include "maps.h"
#include "parse.h"
#include "trace.h"

/* Linear bytes that hold every header we read, with tags, options and a quote. */
#define HEADERS_MAX 256

/* What a program may ask about before it looks at the packet. */
struct situation {
	struct interface *in;
	struct control *ctl;
};

/* False if the packet passes unseen; it is counted then. */
static __always_inline bool begin(struct situation *now, __u32 ifindex, __u32 length_bytes,
				  __u8 role)
{
	__u32 zero = 0;

	now->ctl = bpf_map_lookup_elem(&control, &zero);
	now->in = interface_find(ifindex);
	if (!now->ctl || !now->in || now->in->role != role) {
		count_verdict(0, REASON_NOT_ATTACHED, length_bytes);
		return false;
	}
	if (now->ctl->bypass) {
		count_verdict(now->in->slot, REASON_BYPASS, length_bytes);
		return false;
	}
	return true;
}

static __always_inline void finish(const struct situation *now, struct packet *p,
				   struct decision *d, int reason)
{
	count_verdict(now->in->slot, reason, p->length_bytes);
	/* Half a key is nobody's flow. */
	if (now->ctl->traces && p->keyed)
		trace_decision(p, now->in, d, reason);
}

static __always_inline void packet_init(struct packet *p, __u32 ifindex, __u32 length_bytes,
					const struct situation *now, bool local_is_source)
{
	__builtin_memset(p, 0, sizeof(*p));
	p->ifindex = ifindex;
	p->length_bytes = length_bytes;
	p->now = now_ticks(now->ctl);
	p->zone = now->in->zone;
	p->local_is_source = local_is_source;
	p->no_link_layer = !!(now->in->flags & INTERFACE_NO_LINK_LAYER);
}

/*
 * Global functions: the verifier checks each by itself, whatever calls it. They may be given NULL,
 * as far as it knows.
 */
int datagram_xdp(struct xdp_md *ctx, struct packet *p)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};

	return p ? parse_datagram(&c, p) : REASON_ERROR;
}

int extended_xdp(struct xdp_md *ctx, struct packet *p)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	int rc = p ? parse_extensions(&c, p) : REASON_ERROR;

	return rc == PARSED ? datagram_xdp(ctx, p) : rc;
}

int labelled_xdp(struct xdp_md *ctx, struct packet *p)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	int rc = p ? parse_labelled(&c, p) : REASON_ERROR;

	if (rc == PARSE_EXTENSIONS)
		return extended_xdp(ctx, p);
	return rc == PARSED ? datagram_xdp(ctx, p) : rc;
}

int quote_xdp(struct xdp_md *ctx, struct packet *p)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	int rc = p ? parse_quote(&c, p) : REASON_ERROR;

	if (rc == PARSE_EXTENSIONS)
		rc = extended_xdp(ctx, p);
	else if (rc == PARSED)
		rc = datagram_xdp(ctx, p);
	if (p)
		p->kind = PACKET_ERROR;
	return rc;
}

int datagram_skb(struct __sk_buff *ctx, struct packet *p)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};

	return p ? parse_datagram(&c, p) : REASON_ERROR;
}

int extended_skb(struct __sk_buff *ctx, struct packet *p)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	int rc = p ? parse_extensions(&c, p) : REASON_ERROR;

	return rc == PARSED ? datagram_skb(ctx, p) : rc;
}

int labelled_skb(struct __sk_buff *ctx, struct packet *p)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	int rc = p ? parse_labelled(&c, p) : REASON_ERROR;

	if (rc == PARSE_EXTENSIONS)
		return extended_skb(ctx, p);
	return rc == PARSED ? datagram_skb(ctx, p) : rc;
}

int quote_skb(struct __sk_buff *ctx, struct packet *p)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	int rc = p ? parse_quote(&c, p) : REASON_ERROR;

	if (rc == PARSE_EXTENSIONS)
		rc = extended_skb(ctx, p);
	else if (rc == PARSED)
		rc = datagram_skb(ctx, p);
	if (p)
		p->kind = PACKET_ERROR;
	return rc;
}

static __always_inline int parse_xdp(struct xdp_md *ctx, struct packet *p)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	int rc = parse_outer(&c, p, 0);

	if (rc == PARSED && is_whole(p, false))
		rc = parse_whole(&c, p, false);
	else if (rc == PARSED)
		rc = datagram_xdp(ctx, p);
	else if (rc == PARSE_EXTENSIONS)
		rc = extended_xdp(ctx, p);
	else if (rc == PARSE_LABELS)
		rc = labelled_xdp(ctx, p);
	if (rc == PARSE_QUOTE)
		rc = quote_xdp(ctx, p);
	/* What is not in the first buffer of a frame is payload on any NIC that we know. */
	return rc == PARSE_SHORT ? REASON_MALFORMED : rc;
}

static __always_inline int parse_linear(struct __sk_buff *skb, struct packet *p,
					const struct situation *now, bool local_is_source)
{
	struct cursor c = {(void *)(long)skb->data, (void *)(long)skb->data_end};
	int rc;

	packet_init(p, skb->ifindex, skb->len, now, local_is_source);
	if (skb->vlan_present)
		tag_add(p, skb->vlan_proto, skb->vlan_tci);
	rc = parse_outer(&c, p, skb->protocol);
	if (rc == PARSED && is_whole(p, local_is_source))
		rc = parse_whole(&c, p, local_is_source);
	else if (rc == PARSED)
		rc = datagram_skb(skb, p);
	else if (rc == PARSE_EXTENSIONS)
		rc = extended_skb(skb, p);
	else if (rc == PARSE_LABELS)
		rc = labelled_skb(skb, p);
	if (rc == PARSE_QUOTE)
		rc = quote_skb(skb, p);
	return rc;
}

/* What else the request came in. */
static __always_inline int encapsulation_read(struct __sk_buff *skb, struct packet *p,
					      const struct interface *in)
{
	int found;

	if (!(in->flags & (INTERFACE_TUNNEL_KEY | INTERFACE_XFRM_ID)))
		return PARSED;
	found = in->flags & INTERFACE_XFRM_ID ? xfrm_id_read(skb) : tunnel_key_read(skb);
	if (found < 0)
		return REASON_ERROR;
	p->encapsulated |= found;
	return PARSED;
}

/*
 * A packet that an IPsec policy without an interface of its own decrypted comes by the same
 * interface as before. Asking costs 20 ns.
 */
static __always_inline bool is_decrypted(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_xfrm_state state;

	return !p->no_link_layer && !bpf_skb_get_xfrm_state(skb, 0, &state, sizeof(state), 0);
}

/* Most frames have their headers in the linear part; pulling costs as much as all the rest. */
static __always_inline int parse_skb(struct __sk_buff *skb, struct packet *p,
				     const struct situation *now, bool local_is_source)
{
	__u32 length = skb->len;
	int rc = parse_linear(skb, p, now, local_is_source);

	if (rc != PARSE_SHORT)
		return rc;
	if (skb->data_end - skb->data >= length)
		return REASON_MALFORMED;
	if (bpf_skb_pull_data(skb, length < HEADERS_MAX ? length : HEADERS_MAX))
		return REASON_ERROR;
	rc = parse_linear(skb, p, now, local_is_source);
	return rc == PARSE_SHORT ? REASON_MALFORMED : rc;
}

#endif
