#!/bin/sh
# What ISC's DHCPv6 client runs: puts the address on the interface, and keeps all that it was told in /tmp/lease6.INTERFACE.
case "$reason" in
BOUND6 | RENEW6 | REBIND6)
    set >"/tmp/lease6.$interface"
    [ -n "$new_ip6_address" ] && ip -6 address replace "$new_ip6_address/$new_ip6_prefixlen" dev "$interface"
    ;;
esac
exit 0
