// SPDX-License-Identifier: Apache-2.0
/*
 * send-frames INTERFACE: sends the frames on stdin, each a 16-bit little-endian length and its
 * bytes, as they are. Prints how many went out.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#define BATCH 256

static unsigned char frames[BATCH][65536];

static unsigned int read_batch(struct iovec *vectors)
{
	unsigned char length[2];
	unsigned int count = 0;

	while (count < BATCH && fread(length, 1, 2, stdin) == 2) {
		size_t bytes = length[0] | length[1] << 8;

		if (fread(frames[count], 1, bytes, stdin) != bytes)
			errx(1, "the input ends within a frame");
		vectors[count].iov_base = frames[count];
		vectors[count].iov_len = bytes;
		count++;
	}
	return count;
}

int main(int argc, char **argv)
{
	struct iovec vectors[BATCH];
	struct mmsghdr messages[BATCH] = {};
	struct sockaddr_ll address = {.sll_family = AF_PACKET};
	unsigned long total = 0;
	unsigned int count;
	int one = 1, fd;

	if (argc != 2)
		errx(2, "usage: send-frames INTERFACE < frames");
	address.sll_ifindex = if_nametoindex(argv[1]);
	if (address.sll_ifindex == 0)
		err(1, "%s", argv[1]);
	fd = socket(AF_PACKET, SOCK_RAW, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)))
		err(1, "packet socket");
	if (setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)))
		err(1, "PACKET_QDISC_BYPASS");
	while ((count = read_batch(vectors))) {
		for (unsigned int i = 0; i < count; i++) {
			messages[i].msg_hdr.msg_iov = &vectors[i];
			messages[i].msg_hdr.msg_iovlen = 1;
		}
		for (unsigned int sent = 0; sent < count;) {
			int done = sendmmsg(fd, messages + sent, count - sent, 0);

			if (done < 0 && errno != ENOBUFS && errno != EAGAIN)
				err(1, "send");
			if (done > 0)
				sent += done;
		}
		total += count;
	}
	printf("%lu\n", total);
	return 0;
}
