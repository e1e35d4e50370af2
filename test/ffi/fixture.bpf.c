// SPDX-License-Identifier: GPL-2.0-only
/* Small programs and maps for the contract tests of the bindings. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct pair {
	__u32 a;
	__u32 b;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct pair);
} pairs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} recent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} per_cpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

/* Counts packets of one CPU and answers with the packet's first byte incremented. */
SEC("xdp")
int bump(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 zero = 0, *n = bpf_map_lookup_elem(&per_cpu, &zero);

	if (n)
		*n += 1;
	if (data + 1 > (__u8 *)end)
		return XDP_ABORTED;
	*data += 1;
	return XDP_PASS;
}

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("tc")
int next(struct __sk_buff *skb)
{
	skb->mark = 0x1234;
	return -1;
}

SEC("tc")
int other(struct __sk_buff *skb)
{
	return -1;
}

/* Writes `count` records of `size` bytes that start with their number; odd ones are discarded. */
struct emit {
	__u32 count;
	__u32 emitted;
};

SEC("syscall")
int emit(struct emit *args)
{
	struct emit in = *args;

	for (__u32 i = 0; i < 64 && i < in.count; i++) {
		__u64 *record = bpf_ringbuf_reserve(&events, 24, 0);

		if (!record)
			break;
		record[0] = i;
		record[1] = record[2] = ~0ULL;
		if (i & 1) {
			bpf_ringbuf_discard(record, 0);
			continue;
		}
		bpf_ringbuf_submit(record, 0);
		args->emitted++;
	}
	return 7;
}

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
} __attribute__((preserve_access_index));

/* Writes the key of every pair whose `a` is even. */
SEC("iter/bpf_map_elem")
int even_keys(struct bpf_iter__bpf_map_elem *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct pair *value = ctx->value;
	__u64 *key = ctx->key, copy;

	if (!key || !value || value->a & 1)
		return 0;
	copy = *key;
	bpf_seq_write(seq, &copy, sizeof(copy));
	return 0;
}

char _license[] SEC("license") = "GPL";
