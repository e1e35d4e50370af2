// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Programs of others on the same hooks: one that only counts, one that drops, and those that stand
 * in for VLAN devices and trunk ports.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} counted SEC(".maps");

SEC("tc/count")
int count(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *packets = bpf_map_lookup_elem(&counted, &zero);

	if (packets)
		__sync_fetch_and_add(packets, 1);
	return TC_ACT_UNSPEC;
}

/* UDP to port 4444 ends here. */
SEC("tc/drop4444")
int drop4444(struct __sk_buff *skb)
{
	__u32 offset = sizeof(struct ethhdr);
	struct udphdr udp;

	offset += skb->protocol == bpf_htons(ETH_P_IPV6) ? sizeof(struct ipv6hdr)
							 : sizeof(struct iphdr);
	if (bpf_skb_load_bytes(skb, offset, &udp, sizeof(udp)) == 0 && udp.dest == bpf_htons(4444))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

SEC("tc/pop")
int pop(struct __sk_buff *skb)
{
	bpf_skb_vlan_pop(skb);
	bpf_skb_vlan_pop(skb);
	return TC_ACT_UNSPEC;
}

SEC("tc/push100")
int push100(struct __sk_buff *skb)
{
	bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), 100);
	return TC_ACT_UNSPEC;
}

SEC("tc/push200_100")
int push200_100(struct __sk_buff *skb)
{
	bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), 100);
	bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD), 200);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
