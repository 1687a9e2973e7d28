# VRRP: two keepalived, one becomes backup. The shared address is neither's own by the topology, so its announcements are refused
# packages: keepalived
# alive: 1
# drops: spoofed_arp spoofed_neighbor spoofed_address
conf() {
    if [ "$F" = 4 ]; then vip=10.0.1.99; else vip=fe80::99; fi
    printf 'global_defs {\n vrrp_version 3\n vrrp_garp_master_repeat 1\n}\nvrrp_instance v {\n interface eth0\n state BACKUP\n virtual_router_id 7\n priority %s\n advert_int 0.2\n virtual_ipaddress {\n %s\n }\n}\n' "$1" $vip
}
# Killed, it leaves the address behind, and would use it at once.
run() { ip addr del 10.0.1.99/32 dev eth0 2>/dev/null; ip addr del fe80::99/128 dev eth0 2>/dev/null; conf "$2" >"$D/$1.conf"; rm -f "$D/$1.pid" "$D/$1.vrrp"; keepalived -n -l -P -f "$D/$1.conf" -p "$D/$1.pid" -r "$D/$1.vrrp" >"$D/$1.log" 2>&1 & wait; }
server() { run server 200; }
# Multicast packets that were received.
heard() { if [ "$F" = 4 ]; then awk '/^IpExt: [0-9]/ { print $4 }' /proc/net/netstat; else awk '$1 == "Ip6InMcastPkts" { print $2 }' /proc/net/snmp6; fi; }
client() {
    run client 100 & me=$!
    n=0; until grep -q 'Entering MASTER' "$D/server.log" && grep -q 'Entering BACKUP' "$D/client.log"; do n=$((n + 1)); [ $n -lt 100 ] || return 1; sleep 0.1; done
    # Who hears nothing for three intervals and a part of one becomes master (RFC 5798 6.1): this one hears ten advertisements, and stays backup.
    first=$(heard)
    n=0; until [ $(($(heard) - first)) -ge 10 ]; do n=$((n + 1)); [ $n -lt 100 ] || return 1; sleep 0.1; done
    # The next one does not begin while this one runs.
    pkill -P $me keepalived; wait $me
    ! grep -q 'Entering MASTER' "$D/client.log"
}
