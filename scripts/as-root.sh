#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command as root: directly, or by sudo with the caller's PATH (node may live in a home directory) and
# what tests and demo take from the environment.
set -eu
if [ "$(id -u)" -eq 0 ]; then
	exec "$@"
fi
if ! command -v sudo >/dev/null 2>&1; then
	echo "lasthop: this needs root: there is no sudo here, so run make as root" >&2
	exit 1
fi
for name in CI NO_COLOR TERM BENCH_QUICK $(env | sed -n 's/^\(LASTHOP_[A-Z_]*\)=.*/\1/p'); do
	eval "value=\${$name-}"
	if [ -n "$value" ]; then set -- "$name=$value" "$@"; fi
done
exec sudo env "PATH=$PATH" "$@"
