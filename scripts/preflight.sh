#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Says what this machine lacks to run lasthop, its demo and its tests, and what to do about it.
# Run as root. Mounts the bpf file system where it is missing.
set -eu

problems=0
problem() {
	problems=$((problems + 1))
	echo "lasthop: $1" >&2
	echo "  $2" >&2
}

kernel=$(uname -r)
major=${kernel%%.*}
minor=${kernel#*.}
minor=${minor%%[!0-9]*}
if [ "$major" -lt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -lt 1 ]; }; then
	problem "Linux $kernel is too old: 6.1 or later is needed" \
		"boot a newer kernel (Debian 12, Ubuntu 24.04 and later have one)"
fi

if [ ! -r /sys/kernel/btf/vmlinux ]; then
	problem "the kernel has no BTF: /sys/kernel/btf/vmlinux is missing" \
		"boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (those of Debian and Ubuntu are)"
fi

if [ "$(id -u)" -ne 0 ]; then
	problem "this is not root: programs cannot be loaded, nor namespaces made" \
		"run it as root, or let make do so with sudo"
else
	if [ "$(stat -f -c %T /sys/fs/bpf 2>/dev/null)" != bpf_fs ]; then
		if mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf 2>/dev/null; then
			echo "lasthop: mounted the bpf file system on /sys/fs/bpf" >&2
		else
			problem "no bpf file system is mounted on /sys/fs/bpf, and it could not be mounted" \
				"run: mount -t bpf bpf /sys/fs/bpf  (a container needs --privileged, or the host's mount)"
		fi
	fi
	name="lasthop-preflight-$$"
	if ip netns add "$name" 2>/dev/null; then
		ip netns delete "$name"
	else
		problem "network namespaces cannot be made (ip netns add)" \
			"a container needs --privileged; a kernel needs CONFIG_NET_NS=y"
	fi
	for capability in net_admin bpf perfmon sys_admin; do
		if ! capsh --has-p="cap_$capability" 2>/dev/null; then
			problem "root lacks the capability CAP_$(echo $capability | tr a-z A-Z)" \
				"a container needs --privileged, or --cap-add for it"
		fi
	done
fi

if ! ldconfig -p | grep -q 'libbpf\.so\.1 '; then
	problem "libbpf.so.1 is missing" "run: apt-get install libbpf1  (Debian 12, Ubuntu 24.04 and later have it)"
fi

[ "$problems" -eq 0 ]
