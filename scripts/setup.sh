#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what building and testing need, where it is missing. A second run needs no network.
set -eu
cd "$(dirname "$0")/.."

fail() {
	echo "lasthop: $1" >&2
	shift
	for line in "$@"; do echo "  $line" >&2; done
	exit 1
}

installed() {
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Prints the wanted lines of packages.txt of which no alternative is installed.
missing_lines() {
	sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' scripts/packages.txt | while read -r line; do
		found=no
		for package in $(echo "$line" | tr '|?' '  '); do
			if installed "$package"; then found=yes; fi
		done
		if [ "$found" = no ]; then echo "$line"; fi
	done
}

# The first alternative of a line that apt can install; the first of all if it knows none.
choose() {
	for package in $(echo "$1" | tr '|' ' '); do
		if apt-cache policy "$package" 2>/dev/null | grep -q 'Candidate: [^(]'; then
			echo "$package"
			return
		fi
	done
	echo "${1%%|*}"
}

# Of a package that brings a server which starts at once and at every boot, the tests want the program only. Who
# wants the service later: systemctl unmask NAME. Where it is installed already, it is left as it is.
keep_from_starting() {
	for package in "$@"; do
		case "$package" in
		prometheus)
			if command -v systemctl >/dev/null 2>&1; then
				scripts/as-root.sh systemctl mask --quiet "$package.service" ||
					fail "systemctl could not mask $package.service, which would start with its package"
			fi
			;;
		esac
	done
}

# Prints what cannot be installed, and why.
warn_without() {
	echo "lasthop: without" $1 "tests that need it are skipped: $2" >&2
}

apt_install() {
	# RUNLEVEL: what invoke-rc.d asks before it starts something, where there is no systemd.
	scripts/as-root.sh env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get install -y -q --no-install-recommends "$@"
}

install_packages() {
	missing=$(missing_lines)
	if [ -z "$missing" ]; then return; fi
	required=$(echo "$missing" | grep -v '?$' || true)
	optional=$(echo "$missing" | sed -n 's/?$//p')
	if ! command -v apt-get >/dev/null 2>&1; then
		if [ -n "$required" ]; then
			fail "these packages are missing, and there is no apt-get to install them with:" $required
		fi
		warn_without "$optional" "there is no apt-get to install it with"
		return
	fi
	echo "lasthop: installing" $required $optional
	if ! scripts/as-root.sh apt-get update -q; then
		if [ -n "$required" ]; then
			fail "apt-get update failed: is there a network?" "to install:" $required
		fi
		warn_without "$optional" "apt-get update failed: is there a network?"
		return
	fi
	packages=
	for line in $required; do packages="$packages $(choose "$line")"; done
	if [ -n "$packages" ]; then
		keep_from_starting $packages
		apt_install $packages || fail "apt-get could not install:" $packages
	fi
	if [ -n "$optional" ]; then
		apt_install $optional || warn_without "$optional" "apt-get could not install it"
	fi
}

check_node() {
	command -v node >/dev/null 2>&1 ||
		fail "Node.js is missing: install version 20.19 or later (https://nodejs.org/), with npm"
	node -e 'const [a, b] = process.versions.node.split(".").map(Number);
		process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' ||
		fail "Node.js $(node --version) is too old: install version 20.19 or later"
	command -v npm >/dev/null 2>&1 || fail "npm is missing: it comes with Node.js"
}

install_modules() {
	if node scripts/lockfile.mjs installed; then return; fi
	echo "lasthop: installing the Node.js packages of package-lock.json"
	npm ci --ignore-scripts --no-audit --no-fund ||
		fail "npm ci failed: see above; it needs the npm registry the first time"
}

# The optional FFI backend comes with its compiled binary; building it again fails on current Node.js.
install_ffi_napi() {
	loads='require("ffi-napi"); require("ref-napi")'
	if node -e "$loads" 2>/dev/null; then return; fi
	npm install --no-save --ignore-scripts --no-audit --no-fund ffi-napi@4.0.3 ref-napi@3.0.3 &&
		node -e "$loads" || fail "ffi-napi cannot be loaded by Node.js $(node --version): see above"
}

check_node
case "${1:-all}" in
all)
	install_packages
	install_modules
	;;
packages) install_packages ;;
modules) install_modules ;;
ffi-napi)
	install_modules
	install_ffi_napi
	;;
*) fail "usage: setup.sh [all|packages|modules|ffi-napi]" ;;
esac
