#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest that serves. Its kernel's command line has, as lasthop.KEY=VALUE,
#   name      what it calls itself
#   address   of eth0, with prefix lengths, joined by commas
#   gateway   default gateways
#   service   addresses that it answers for beside its own: on lo, and nowhere told to the network
# HTTP on 80 (/ names it, /bulk is BULK_BYTES long, /bulk.sha256 the digest of that), TCP echo on 7, and on 9 what
# comes in is answered by its digest.
export PATH=/bin
BULK_BYTES=8388608

fail() {
	echo "lasthop-guest: $1" >/dev/console
	poweroff -f
}

/bin/busybox mkdir -p /proc /sys /dev /www
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module" || fail "$module does not load"; done </modules/list

value() {
	tr ' ' '\n' </proc/cmdline | sed -n "s/^lasthop\.$1=//p"
}
values() {
	value "$1" | tr ',' ' '
}

ip link set lo up
echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce
# A handshake that failed is over: its SYN-ACKs do not turn up in what is counted later.
echo 0 >/proc/sys/net/ipv4/tcp_synack_retries
for name in default eth0; do
	echo 0 >"/proc/sys/net/ipv6/conf/$name/accept_dad"
	echo 0 >"/proc/sys/net/ipv6/conf/$name/accept_ra"
done
ip link set eth0 up || fail "there is no eth0"
for address in $(values address); do ip addr add "$address" dev eth0 || fail "no address $address"; done
for address in $(values service); do ip addr add "$address" dev lo || fail "no address $address"; done
for gateway in $(values gateway); do ip route add default via "$gateway" || fail "no way by $gateway"; done

cat >/bin/digest <<'END'
#!/bin/sh
sha256sum | cut -c 1-64
END
chmod 755 /bin/digest
value name >/www/index.html
head -c "$BULK_BYTES" /dev/urandom >/www/bulk
/bin/digest </www/bulk >/www/bulk.sha256
httpd -h /www || fail "httpd did not start"
nc -ll -p 7 -e /bin/cat &
nc -ll -p 9 -e /bin/digest &
echo "lasthop-guest: serves" >/dev/console
while :; do sleep 3600; done
