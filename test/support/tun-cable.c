// SPDX-License-Identifier: Apache-2.0
// A cable between two tun devices in two network namespaces: what one gets the other gives out,
// large segments and unfinished checksums as they are. Neither device has a link layer.
//   tun-cable NETNS NAME NETNS NAME
// Says "ready" when both are there; they go with the process.

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BYTES = 1 << 17 };

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int open_tun(const char *netns, const char *name)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
	int ns = open(netns, O_RDONLY | O_CLOEXEC), tun;

	if (ns < 0 || setns(ns, CLONE_NEWNET))
		fail(netns);
	close(ns);
	tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (tun < 0)
		fail("/dev/net/tun");
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	if (ioctl(tun, TUNSETIFF, &request))
		fail("TUNSETIFF");
	if (ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
		fail("TUNSETOFFLOAD");
	return tun;
}

int main(int argc, char **argv)
{
	static char packet[BYTES];
	struct pollfd ends[2];

	if (argc != 5) {
		fprintf(stderr, "tun-cable NETNS NAME NETNS NAME\n");
		return 2;
	}
	for (int i = 0; i < 2; i++)
		ends[i] = (struct pollfd){.fd = open_tun(argv[1 + 2 * i], argv[2 + 2 * i]),
					  .events = POLLIN};
	puts("ready");
	fflush(stdout);
	for (;;) {
		if (poll(ends, 2, -1) < 0)
			fail("poll");
		for (int i = 0; i < 2; i++) {
			ssize_t bytes;

			if (!(ends[i].revents & POLLIN))
				continue;
			bytes = read(ends[i].fd, packet, sizeof(packet));
			if (bytes < 0)
				fail("read");
			/* A device that is down takes nothing, as a network would. */
			if (write(ends[!i].fd, packet, bytes) < 0)
				perror("write");
		}
	}
}
