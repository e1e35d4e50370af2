#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# scripts/install.sh install|uninstall: puts what `make build` made in its places, or takes away just that.
#
#   PREFIX      /usr/local     the command, its modules, man page, completions, the systemd unit, and in
#                              share/lasthop what libvirt and QEMU may call
#   SYSCONFDIR  /etc           lasthop/lasthop.yaml, an example; never overwritten and never removed
#   DESTDIR     empty          stands before all of them, for packagers
set -eu
cd "$(dirname "$0")/.."
umask 022

PREFIX=${PREFIX:-/usr/local}
SYSCONFDIR=${SYSCONFDIR:-/etc}
DESTDIR=${DESTDIR:-}
library=$PREFIX/lib/lasthop
# What was installed, one path a line without DESTDIR; directories that were made end in a slash.
manifest=$library/installed
hypervisor_scripts="libvirt/qemu libvirt/lasthop-shutdown qemu/lasthop-ifup qemu/lasthop-ifdown"

fail() {
	echo "lasthop: $1" >&2
	shift
	for line in "$@"; do echo "  $line" >&2; done
	exit 1
}

case $PREFIX$SYSCONFDIR$DESTDIR in
*[!A-Za-z0-9/._+@~-]*) fail "PREFIX, SYSCONFDIR and DESTDIR are paths of letters, digits and / . _ + @ ~ -" ;;
esac
for path in "$PREFIX" "$SYSCONFDIR" "${DESTDIR:-/}"; do
	case $path in
	/*) ;;
	*) fail "$path is not an absolute path" ;;
	esac
done

# Makes a directory and its parents, and notes down those that were not there.
directory() {
	if [ -z "$1" ] || [ -d "$DESTDIR$1" ]; then return; fi
	directory "${1%/*}"
	mkdir -m 755 "$DESTDIR$1"
	echo "$1/" >>"$new"
}

# file MODE FROM TO
file() {
	directory "${3%/*}"
	rm -f "$DESTDIR$3"
	install -m "$1" "$2" "$DESTDIR$3"
	echo "$3" >>"$new"
}

# tree FROM TO: a directory with all that is in it
tree() {
	find "$1" -type d | sort | while read -r from; do directory "$2${from#"$1"}"; done
	cp -R "$1/." "$DESTDIR$2"
	chmod -R u=rwX,go=rX "$DESTDIR$2"
	find "$1" -type f | sed "s|^$1|$2|" >>"$new"
}

# Directories of node_modules that the command needs when it runs, as package-lock.json has them.
production_modules() {
	node -e '
		const { existsSync, readFileSync } = require("node:fs");
		const { packages } = JSON.parse(readFileSync("package-lock.json", "utf8"));
		for (const [path, entry] of Object.entries(packages)) {
			if (path === "" || entry.dev || entry.devOptional || entry.peer) continue;
			// What is inside a module goes with it.
			if (path.indexOf("/node_modules/") > 0) continue;
			if (existsSync(path)) console.log(path);
			else if (!entry.optional) throw new Error(`${path} is missing: run make setup`);
		}'
}

install_modules() {
	modules=$(production_modules) || fail "the Node.js packages are not complete: see above"
	for module in $modules; do tree "$module" "$library/$module"; done
}

install_documents() {
	for document in README.md CHANGELOG.md LICENSE; do file 644 "$document" "$library/$document"; done
	for documents in LICENSES docs examples; do tree "$documents" "$library/$documents"; done
	file 644 dist/man/lasthop.8 "$PREFIX/share/man/man8/lasthop.8"
	file 644 dist/completion/lasthop.bash "$PREFIX/share/bash-completion/completions/lasthop"
	file 644 dist/completion/_lasthop "$PREFIX/share/zsh/site-functions/_lasthop"
	file 644 dist/completion/lasthop.fish "$PREFIX/share/fish/vendor_completions.d/lasthop.fish"
}

# adapted MODE FROM TO: a file in which the command and its configuration are where they are installed
adapted() {
	text=$(mktemp)
	sed -e "s|/usr/bin/lasthop|$PREFIX/bin/lasthop|g" -e "s|{LASTHOP:=lasthop}|{LASTHOP:=$PREFIX/bin/lasthop}|" \
		-e "s|/etc/lasthop/|$SYSCONFDIR/lasthop/|g" "$2" >"$text"
	file "$1" "$text" "$3"
	rm "$text"
}

install_unit() {
	adapted 644 packaging/lasthop.service "$PREFIX/lib/systemd/system/lasthop.service"
}

# Nobody calls them until they are linked to, or named.
install_scripts() {
	for script in $hypervisor_scripts; do adapted 755 "packaging/$script" "$PREFIX/share/lasthop/$script"; done
}

install_example() {
	if [ -e "$DESTDIR$SYSCONFDIR/lasthop/lasthop.yaml" ]; then return; fi
	# Not noted down: it is the operator's from now on.
	mkdir -p "$DESTDIR$SYSCONFDIR/lasthop"
	install -m 644 packaging/lasthop.yaml "$DESTDIR$SYSCONFDIR/lasthop/lasthop.yaml"
}

install_all() {
	[ -e dist/cli/main.js ] && [ -e dist/bpf/lasthop.bpf.o ] && [ -e dist/bpf/xfrm.bpf.o ] ||
		fail "nothing is built yet: run \`make build\`"
	for needed in dist/man/lasthop.8 packaging/lasthop.service packaging/libvirt/qemu; do
		[ -e "$needed" ] || fail "$needed is missing: run \`make build\`"
	done
	mkdir -p "$DESTDIR/"
	new=$(mktemp)
	finished=no
	trap 'if [ "$finished" = no ]; then remove_listed "$new"; fi; rm -f "$new"' EXIT
	# Files of the version before that are no more; its directories are made again, and noted down again.
	remove_all
	install_modules
	tree dist "$library/dist"
	file 644 package.json "$library/package.json"
	install_documents
	install_unit
	install_scripts
	install_example
	directory "$PREFIX/bin"
	ln -sf ../lib/lasthop/dist/cli/main.js "$DESTDIR$PREFIX/bin/lasthop"
	echo "$PREFIX/bin/lasthop" >>"$new"
	echo "$manifest" >>"$new"
	install -m 644 "$new" "$DESTDIR$manifest"
	finished=yes
	echo "lasthop: installed $DESTDIR$PREFIX/bin/lasthop; its configuration is $DESTDIR$SYSCONFDIR/lasthop/lasthop.yaml"
	if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
		systemctl daemon-reload
		echo "lasthop: \`systemctl enable --now lasthop\` starts it, \`systemctl restart lasthop\` brings a new version into use"
	fi
}

# Removes what the manifest names, if there is one.
remove_all() {
	[ -e "$DESTDIR$manifest" ] || return 0
	list=$(mktemp)
	cp "$DESTDIR$manifest" "$list"
	remove_listed "$list"
	rm "$list"
}

# Files, then directories that are empty then, the innermost first.
remove_listed() {
	sed -n '/\/$/!p' "$1" | sed "s|^|$DESTDIR|" | tr '\n' '\0' | xargs -0 rm -f
	sed -n '/\/$/p' "$1" | sort -r | while read -r path; do
		rmdir "$DESTDIR${path%/}" 2>/dev/null || true # somebody put something there
	done
}

uninstall_all() {
	[ -e "$DESTDIR$manifest" ] || fail "nothing is installed below $DESTDIR$PREFIX"
	remove_all
	echo "lasthop: removed from $DESTDIR$PREFIX; $DESTDIR$SYSCONFDIR/lasthop is left, and what is attached stays attached"
	echo "  \`lasthop detach --all --purge\` had to come first if nothing should be left in the kernel"
	if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
}

case "${1:-}" in
install) install_all ;;
uninstall) uninstall_all ;;
*) fail "usage: install.sh install|uninstall" ;;
esac
