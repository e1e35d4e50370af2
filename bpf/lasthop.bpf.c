// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Entries only: what each hook knows, and how it says pass. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "address_answer.h"
#include "deliver.h"
#include "hook.h"
#include "learn.h"
#include "reply.h"
#include "request_mss.h"
#include "reset.h"
#include "sweep.h"
#include "tunnel_in.h"
#include "tunnel_out.h"
#include "vm_enter.h"

SEC("xdp.frags")
int learn_xdp(struct xdp_md *ctx)
{
	__u32 length = bpf_xdp_get_buff_len(ctx);
	int reason, action = XDP_PASS;
	struct decision decision = {};
	struct situation now;
	struct packet packet;

	if (!begin(&now, ctx->ingress_ifindex, length, ROLE_UPLINK))
		return XDP_PASS;
	packet_init(&packet, ctx->ingress_ifindex, length, &now, false);
	reason = parse_xdp(ctx, &packet);
	if (reason == PARSED)
		reason = learn(ctx, &packet, now.in, now.ctl, &decision);
	if (learn_clamps(&packet, now.in, reason))
		mss_clamp_request_xdp(ctx, &packet, now.in, decision.deliver);
	if (is_question(now.ctl, reason) && answer_address_xdp(ctx, &packet, now.in, &decision))
		reason = REASON_ADDRESS_ANSWER;
	if (decision.deliver && now.ctl->vm_cells)
		reason = deliver_xdp(ctx, &packet, &decision, reason);
	if (reason == REASON_VM_RESET)
		reason = reset_xdp(ctx, &packet, now.in, &decision);
	if (reason == REASON_SERVICE_EMPTY || reason == REASON_VM_HELD)
		decision.verdict = VERDICT_DROP;
	if (decision.verdict == VERDICT_REDIRECT)
		action = bpf_redirect(decision.out_ifindex, 0);
	else if (decision.verdict == VERDICT_DROP)
		action = XDP_DROP;
	else if (decision.verdict == VERDICT_ANSWER)
		action = XDP_TX;
	finish(&now, &packet, &decision, reason);
	return action;
}

SEC("tc")
int learn_tc(struct __sk_buff *skb)
{
	int reason, action = TC_ACT_UNSPEC;
	struct decision decision = {};
	struct situation now;
	struct packet packet;

	if (!begin(&now, skb->ifindex, skb->len, ROLE_UPLINK))
		return TC_ACT_UNSPEC;
	reason = parse_skb(skb, &packet, &now, false);
	if (reason == PARSED)
		reason = encapsulation_read(skb, &packet, now.in);
	if (reason == PARSED)
		reason = learn(skb, &packet, now.in, now.ctl, &decision);
	if (is_learned_anew(reason) && is_decrypted(skb, &packet))
		reason = learn_decrypted(&packet, now.in, &decision, reason);
	if (learn_clamps(&packet, now.in, reason))
		mss_clamp_request_skb(skb, &packet, now.in, decision.deliver);
	if (is_question(now.ctl, reason) && answer_address_skb(skb, &packet, now.in, &decision))
		reason = answer_encapsulate(skb, now.in, &decision);
	if (decision.deliver && now.ctl->vm_cells)
		reason = deliver_skb(skb, &packet, &decision, reason);
	if (reason == REASON_VM_RESET)
		reason = reset_skb(skb, &packet, &decision);
	if (reason == REASON_SERVICE_EMPTY || reason == REASON_VM_HELD)
		decision.verdict = VERDICT_DROP;
	if (decision.verdict == VERDICT_REDIRECT || decision.verdict == VERDICT_ANSWER)
		action = bpf_redirect(decision.out_ifindex, 0);
	else if (decision.verdict == VERDICT_DROP)
		action = TC_ACT_SHOT;
	finish(&now, &packet, &decision, reason);
	return action;
}

SEC("tc")
int reply_tc(struct __sk_buff *skb)
{
	struct decision decision = {};
	int reason, action = TC_ACT_UNSPEC;
	struct situation now;
	struct packet packet;
	__u32 vm;

	if (!begin(&now, skb->ifindex, skb->len, ROLE_TAP))
		return TC_ACT_UNSPEC;
	reason = parse_skb(skb, &packet, &now, true);
	vm = vm_of(&packet, now.in);
	if (now.in->policy == POLICY_OFF)
		reason = REASON_OFF;
	else if (reason == PARSED)
		reason = vm ? reply(skb, &packet, now.in, now.ctl, vm, &decision)
			    : no_vm_reason(&packet, now.in);
	if (reason == REASON_REDIRECT) {
		decision.verdict = VERDICT_REDIRECT;
		action = decision.routed ? bpf_redirect_neigh(decision.out_ifindex, NULL, 0, 0)
					 : bpf_redirect(decision.out_ifindex, 0);
	} else if (reason == REASON_DEVICE_DROP) {
		decision.verdict = VERDICT_DROP;
		action = TC_ACT_SHOT;
	} else if (reason == REASON_STACK) {
		decision.verdict = VERDICT_STACK;
	} else if (reason == REASON_TOO_BIG) {
		decision.verdict = VERDICT_ANSWER;
		action = bpf_redirect(packet.ifindex, 0);
	}
	finish(&now, &packet, &decision, reason);
	return action;
}

/* At the underlay's ingress. */
SEC("tc")
int tunnel_in(struct __sk_buff *skb)
{
	struct arrival arrival;
	struct tunnel *t = arrival_tunnel(skb, &arrival);
	int action;

	if (!t)
		return TC_ACT_UNSPEC;
	action = tunnel_receive(skb, t, &arrival);
	return tunnel_received(t, action, skb->len);
}

/* At the egress of a tunnel's netdev. */
SEC("tc")
int tunnel_out(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, length = skb->len;
	struct tunnel *t = bpf_map_lookup_elem(&tunnels, &ifindex);

	return t ? tunnel_sent(t, tunnel_send(skb, t), length) : TC_ACT_SHOT;
}

/* The same for MPLS, where the frames come out of the pair: at the other end's ingress. */
SEC("tc")
int tunnel_out_labels(struct __sk_buff *skb)
{
	struct tunnel_index_key key = {.kind = TUNNEL_MPLS, .underlay = skb->ifindex};
	__u32 *ifindex = bpf_map_lookup_elem(&tunnel_index, &key), length = skb->len;
	struct tunnel *t = ifindex ? bpf_map_lookup_elem(&tunnels, ifindex) : NULL;

	return t ? tunnel_sent(t, labels_send(skb, t), length) : TC_ACT_SHOT;
}

/* For the controller, which finds out how jiffies and the clock go together. */
SEC("syscall")
int read_clock(struct clock *answer)
{
	answer->jiffies = bpf_jiffies64();
	answer->time_ns = bpf_ktime_get_ns();
	return 0;
}

/*
 * For the controller, which cannot take an index without getting in the programs' way: its value is
 * one, or LAST_HOPS_MAX. Only ever test-run; a SYSCALL program sleeps, and may not use a queue then
 * on Linux 6.1.
 */
SEC("raw_tp")
int take_last_hop(void *ctx)
{
	__u32 zero = 0;
	struct allocations *given = bpf_map_lookup_elem(&allocations, &zero);

	return given ? last_hop_take(given) : LAST_HOPS_MAX;
}

SEC("iter/bpf_map_elem")
int sweep_flows4(struct bpf_iter__bpf_map_elem *ctx)
{
	return sweep_entry(ctx, &flows4, TABLE_FLOWS4, sizeof(struct flow4_key));
}

SEC("iter/bpf_map_elem")
int sweep_flows6(struct bpf_iter__bpf_map_elem *ctx)
{
	return sweep_entry(ctx, &flows6, TABLE_FLOWS6, sizeof(struct flow6_key));
}

SEC("iter/bpf_map_elem")
int sweep_embryos4(struct bpf_iter__bpf_map_elem *ctx)
{
	return sweep_entry(ctx, &embryos4, TABLE_EMBRYOS4, sizeof(struct flow4_key));
}

SEC("iter/bpf_map_elem")
int sweep_embryos6(struct bpf_iter__bpf_map_elem *ctx)
{
	return sweep_entry(ctx, &embryos6, TABLE_EMBRYOS6, sizeof(struct flow6_key));
}

SEC("syscall")
int sweep_key(struct sweep_key *asked)
{
	struct flow4_key key4;
	struct flow6_key key6;

	__builtin_memcpy(&key4, asked->key, sizeof(key4));
	__builtin_memcpy(&key6, asked->key, sizeof(key6));
	switch (asked->table) {
	case TABLE_FLOWS4:
		return sweep_single(&flows4, TABLE_FLOWS4, &key4, key4.zone, key4.proto);
	case TABLE_FLOWS6:
		return sweep_single(&flows6, TABLE_FLOWS6, &key6, key6.zone, key6.proto);
	case TABLE_EMBRYOS4:
		return sweep_single(&embryos4, TABLE_EMBRYOS4, &key4, key4.zone, key4.proto);
	case TABLE_EMBRYOS6:
		return sweep_single(&embryos6, TABLE_EMBRYOS6, &key6, key6.zone, key6.proto);
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
