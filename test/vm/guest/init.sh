#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest, from its initramfs: puts the host's root below a tmpfs, so that nothing written here
# gets there, and goes on in it. `modules` lists the kernel modules that takes, in their order.
export PATH=/bin
set -eu

fail() {
	echo "lasthop-guest: $1" >/dev/console
	poweroff -f
}

/bin/busybox mkdir -p /proc /sys /dev /lower /upper /root
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module" || fail "$module does not load"; done </modules/list

mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /lower || fail "no root of the host"
mount -t tmpfs -o mode=755 upper /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work root /root || fail "no overlay"
mkdir -p /root/tmp /root/run
mount -t tmpfs run /root/run
mkdir -p /root/run/lasthop-guest
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=none results /root/run/lasthop-guest ||
	fail "no place for results"
for place in proc sys dev; do mount --move /$place /root/$place; done
exec switch_root /root /bin/sh /run/lasthop-guest/inside.sh
