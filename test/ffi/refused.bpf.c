// SPDX-License-Identifier: GPL-2.0-only
/* A program that the verifier refuses, with a log of many kilobytes before it does. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int reads_too_far(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 sum = 0;

	if (data + 256 > (__u8 *)end)
		return XDP_PASS;
#pragma clang loop unroll(full)
	for (int i = 0; i < 256; i++)
		sum = sum * 31 + data[i];
	return sum + data[300];
}

char _license[] SEC("license") = "GPL";
