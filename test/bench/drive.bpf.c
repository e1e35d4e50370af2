// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Programs that feed frames to what is measured, and count what arrives. Every frame is written
 * whole from a template each time: live-frame runs reuse their pages, and a redirecting program has
 * changed the frame of the run before.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define FRAME_BYTES 64
/* IPv4 without options */
#define CHECK_OFFSET	   (ETH_HLEN + 10)
#define SOURCE_OFFSET	   (ETH_HLEN + 12)
#define DESTINATION_OFFSET (ETH_HLEN + 16)
#define SOURCE_PORT_OFFSET (ETH_HLEN + 20)

enum order {
	ORDER_RANDOM,	  /* any of the first `flows` */
	ORDER_SEQUENTIAL, /* cursor, cursor + 1, … */
};

/* Written by the harness before a run. */
struct drive {
	__u8 frame[FRAME_BYTES]; /* all but remote address, remote port, IP checksum */
	__u32 remote;		 /* of flow 0, host order; flow n has remote + n */
	__u32 partial_check; /* one's complement sum of the header without checksum and remote */
	__u32 order;
	__u32 flows;
	__u32 cursor;
	__u32 reply; /* the remote side is the destination */
	__u64 random;
};

struct redirect {
	__u32 ifindex;
	__u32 reserved;
	__u8 macs[16]; /* destination, source, two bytes of padding */
};

struct arrived {
	__u64 packets;
	__u64 bytes;
	__u64 other_packets; /* another destination MAC than expected */
};

struct drive drive SEC(".data.drive");
struct redirect redirect SEC(".data.redirect");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} xdp_target SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} tc_target SEC(".maps");

/* ifindex of the receiving interface -> what arrived there */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, __u32);
	__type(value, struct arrived);
	__uint(max_entries, 256);
} arrivals SEC(".maps");

static __always_inline __u32 choose_flow(void)
{
	if (drive.order == ORDER_SEQUENTIAL)
		return drive.cursor++;
	drive.random = drive.random * 6364136223846793005ULL + 1442695040888963407ULL;
	return (drive.random >> 32) * drive.flows >> 32;
}

static __always_inline int write_frame(void *data, void *data_end)
{
	__u64 *to = data, *from = (__u64 *)drive.frame;
	__u32 flow, remote, check;
	__u8 *frame = data;
	__be16 port;

	if (data + FRAME_BYTES > data_end)
		return -1;
#pragma clang loop unroll(full)
	for (int i = 0; i < FRAME_BYTES / 8; i++)
		to[i] = from[i];
	flow = choose_flow();
	remote = drive.remote + flow;
	port = bpf_htons(0x8000 | (flow & 0x7fff));
	check = drive.partial_check + (remote >> 16) + (remote & 0xffff);
	check = (check & 0xffff) + (check >> 16);
	check = (check & 0xffff) + (check >> 16);
	*(__be16 *)(frame + CHECK_OFFSET) = bpf_htons(~check & 0xffff);
	if (drive.reply) {
		*(__be32 *)(frame + DESTINATION_OFFSET) = bpf_htonl(remote);
		*(__be16 *)(frame + SOURCE_PORT_OFFSET + 2) = port;
	} else {
		*(__be32 *)(frame + SOURCE_OFFSET) = bpf_htonl(remote);
		*(__be16 *)(frame + SOURCE_PORT_OFFSET) = port;
	}
	return 0;
}

SEC("xdp.frags")
int drive_xdp(struct xdp_md *ctx)
{
	if (write_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		return XDP_ABORTED;
	bpf_tail_call(ctx, &xdp_target, 0);
	return XDP_ABORTED;
}

SEC("tc")
int drive_tc(struct __sk_buff *skb)
{
	if (write_frame((void *)(long)skb->data, (void *)(long)skb->data_end))
		return TC_ACT_SHOT;
	bpf_tail_call(skb, &tc_target, 0);
	return TC_ACT_SHOT;
}

/* For live frames: they enter the stack at the interface that the context names. */
SEC("xdp")
int inject(struct xdp_md *ctx)
{
	if (write_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		return XDP_ABORTED;
	return XDP_PASS;
}

SEC("xdp.frags")
int bare_xdp(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("tc")
int bare_tc(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

/* The least that a reply path can do: no parsing, no lookup. */
SEC("tc")
int redirect_tc(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;

	if (data + ETH_HLEN > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	__builtin_memcpy(data, redirect.macs, 2 * ETH_ALEN);
	return bpf_redirect(redirect.ifindex, 0);
}

/* Where the replies arrive: IPv4 is counted and taken off, the rest passes. */
SEC("tc")
int count_tc(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct arrived *arrived;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_MPLS_UC))
		return TC_ACT_UNSPEC;
	arrived = bpf_map_lookup_elem(&arrivals, &ifindex);
	if (arrived) {
		/* type 0 of skb->pkt_type: the frame bears this interface's MAC */
		if (skb->pkt_type == 0) {
			arrived->packets++;
			arrived->bytes += skb->len;
		} else {
			arrived->other_packets++;
		}
	}
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
