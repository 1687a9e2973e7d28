#!/bin/sh
# What busybox's DHCP client (udhcpc) runs: puts a lease's address, routes and MTU on the interface, and keeps all that it was told in
# /tmp/lease.INTERFACE, one "name=value" a line.
case "$1" in
deconfig)
    ip -4 address flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    set >"/tmp/lease.$interface"
    ip -4 address flush dev "$interface"
    ip address add "$ip/$mask" dev "$interface"
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    # Classless routes (RFC 3442) take the place of the router option.
    if [ -n "$staticroutes" ]; then
        set -- $staticroutes
        while [ $# -ge 2 ]; do
            if [ "$2" = 0.0.0.0 ]; then
                ip route add "$1" dev "$interface"
            else
                ip route add "$1" via "$2" dev "$interface"
            fi
            shift 2
        done
    else
        for gateway in $router; do ip route add default via "$gateway" dev "$interface"; done
    fi
    ;;
esac
exit 0
