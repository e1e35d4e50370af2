// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * On shared XFRM interfaces, before learn_tc and behind reply_tc. An object of its own: it loads
 * only where the kernel's module is loaded and has these functions (Linux 6.2,
 * net/xfrm/xfrm_interface_bpf.c).
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "xfrm.h"

struct bpf_xfrm_info {
	__u32 if_id;
	int link;
};

extern int bpf_skb_get_xfrm_info(struct __sk_buff *skb, struct bpf_xfrm_info *to) __ksym;
extern int bpf_skb_set_xfrm_info(struct __sk_buff *skb, const struct bpf_xfrm_info *from) __ksym;

/* At its ingress. */
SEC("tc")
int xfrm_in(struct __sk_buff *skb)
{
	struct bpf_xfrm_info info = {};

	if (bpf_skb_get_xfrm_info(skb, &info)) {
		skb->cb[XFRM_CB_MARK] = 0;
		return TC_ACT_UNSPEC;
	}
	skb->cb[XFRM_CB_ID] = info.if_id;
	skb->cb[XFRM_CB_MARK] = XFRM_MARK;
	return TC_ACT_UNSPEC;
}

/*
 * At its egress: replies have a route by now, which the kernel needs to find the policy, and which
 * this keeps. By which interface the encrypted packet leaves is for the routes to say.
 */
SEC("tc")
int xfrm_out(struct __sk_buff *skb)
{
	struct bpf_xfrm_info info = {};

	if (skb->cb[XFRM_CB_MARK] != XFRM_MARK)
		return TC_ACT_UNSPEC;
	info.if_id = skb->cb[XFRM_CB_ID];
	return bpf_skb_set_xfrm_info(skb, &info) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "GPL";
