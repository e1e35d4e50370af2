// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* For tests with real devices: sends a frame out of a device, and tells what comes in at another,
 * with the VLAN metadata that a test run can neither set nor show. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#define HEAD_BYTES 128

struct captured {
	__u32 ifindex;
	__u32 length_bytes;
	__u32 vlan_present;
	__u32 vlan_proto; /* network order */
	__u32 vlan_tci;
	__u32 head_bytes;
	__u8 head[HEAD_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} captures SEC(".maps");

/* cb[0]: the device to send out of; cb[1]: a tag for the metadata, protocol (network order) << 16 |
 * TCI. */
SEC("tc")
int inject(struct __sk_buff *skb)
{
	__u32 ifindex = skb->cb[0], tag = skb->cb[1];

	skb->cb[0] = 0;
	skb->cb[1] = 0;
	if (tag && bpf_skb_vlan_push(skb, tag >> 16, tag & 0xffff))
		return 1;
	return bpf_clone_redirect(skb, ifindex, 0) ? 2 : 0;
}

SEC("tc")
int capture(struct __sk_buff *skb)
{
	struct captured *c = bpf_ringbuf_reserve(&captures, sizeof(*c), 0);
	__u32 length = skb->len;

	if (!c)
		return TC_ACT_SHOT;
	c->ifindex = skb->ifindex;
	c->length_bytes = length;
	c->vlan_present = skb->vlan_present;
	c->vlan_proto = skb->vlan_proto;
	c->vlan_tci = skb->vlan_tci;
	if (length > HEAD_BYTES)
		length = HEAD_BYTES;
	c->head_bytes = length;
	/* From 1 to HEAD_BYTES, in a form that the verifier of Linux 6.1 follows too. */
	barrier_var(length);
	if (bpf_skb_load_bytes(skb, 0, c->head, ((length - 1) & (HEAD_BYTES - 1)) + 1))
		c->head_bytes = 0;
	bpf_ringbuf_submit(c, 0);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
