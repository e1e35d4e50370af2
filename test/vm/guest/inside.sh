#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# In a guest, on top of the host's root: what a booted system has, then the tests. `environment` has the paths.
. /run/lasthop-guest/environment
cd "$REPOSITORY"

prepare() {
	set -eu
	chmod 1777 /tmp
	mkdir -p /dev/pts /dev/shm /run/lock /run/netns "/lib/modules/$(uname -r)"
	mount -t devpts devpts /dev/pts
	mount -t tmpfs shm /dev/shm
	mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	mount -t debugfs debugfs /sys/kernel/debug
	mount -t tracefs tracefs /sys/kernel/tracing
	mount --bind "$MODULES" "/lib/modules/$(uname -r)"
	ip link set lo up
	modprobe -a $MODPROBE
}

(prepare) >/run/lasthop-guest/output 2>&1
status=$?
if [ "$status" -eq 0 ]; then
	sh -c "$COMMAND" >>/run/lasthop-guest/output 2>&1 </dev/null
	status=$?
fi
echo "$status" >/run/lasthop-guest/status
sync
busybox poweroff -f
