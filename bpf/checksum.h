/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Internet checksums (RFC 1071), in the byte order of the wire: no sum is ever swapped. */
#ifndef LASTHOP_CHECKSUM_H
#define LASTHOP_CHECKSUM_H

#include "frame.h"
#include "key.h"

static __always_inline __u16 sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Of an even number of bytes, known when this is compiled. */
static __always_inline __u64 sum_halves(const void *from, __u32 bytes)
{
	const __u16 *halves = from;
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < bytes / 2; i++)
		sum += halves[i];
	return sum;
}

/*
 * What the pseudo header adds up to. A sender that leaves the checksum to its device has written
 * this, folded, where the checksum will be.
 */
static __always_inline __u64 sum_pseudo(const struct packet *p, __u32 bytes, __u8 proto)
{
	__u64 sum = (__u64)bpf_htonl(bytes) + bpf_htonl(proto);

	if (p->family == 4)
		return sum + p->key4.local + p->key4.remote;
	for (int i = 0; i < 4; i++) {
		sum += ((const __u32 *)p->key6.local)[i];
		sum += ((const __u32 *)p->key6.remote)[i];
	}
	return sum;
}

/*
 * Is this the checksum field of a packet whose checksum is unfinished? One of 65,536 that are
 * finished looks the same.
 */
static __always_inline bool is_unfinished(const struct packet *p, __sum16 field)
{
	return field == sum_fold(sum_pseudo(p, p->payload_bytes, packet_proto(p)));
}

#endif
