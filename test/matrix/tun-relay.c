// SPDX-License-Identifier: Apache-2.0
/* Carries the packets of a tun netdev in UDP: tun-relay DEVICE LOCAL REMOTE PORT. */
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_in address(const char *text, const char *port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

	if (inet_pton(AF_INET, text, &to.sin_addr) != 1)
		errx(2, "%s is not an IPv4 address", text);
	return to;
}

int main(int argc, char **argv)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	struct sockaddr_in local, remote;
	struct pollfd ends[2];
	char packet[65536];

	if (argc != 5)
		errx(2, "usage: tun-relay DEVICE LOCAL REMOTE PORT");
	local = address(argv[2], argv[4]);
	remote = address(argv[3], argv[4]);
	strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
	ends[0].fd = open("/dev/net/tun", O_RDWR);
	ends[1].fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (ends[0].fd < 0 || ioctl(ends[0].fd, TUNSETIFF, &request))
		err(1, "%s", argv[1]);
	if (ends[1].fd < 0 || bind(ends[1].fd, (void *)&local, sizeof(local)) ||
	    connect(ends[1].fd, (void *)&remote, sizeof(remote)))
		err(1, "UDP");
	ends[0].events = ends[1].events = POLLIN;
	puts("ready");
	fflush(stdout);
	for (;;) {
		if (poll(ends, 2, -1) < 0)
			err(1, "poll");
		for (int from = 0; from < 2; from++) {
			ssize_t length;

			if (!ends[from].revents)
				continue;
			/* The other relay may not be there yet: a packet lost, as on any wire. */
			length = read(ends[from].fd, packet, sizeof(packet));
			if (length > 0 && write(ends[!from].fd, packet, length) < 0 && from)
				warn("%s", argv[1]);
		}
	}
}
