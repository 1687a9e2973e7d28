# UDP multicast within the subnet
# packages: socat
# alive: 1
server() { if [ $F = 4 ]; then exec socat -u UDP4-RECV:7004,ip-add-membership=239.1.1.1:eth0 "OPEN:$D/heard,creat,append"; else exec socat -u UDP6-RECV:7004,ipv6-join-group=[ff05::7]:eth0 "OPEN:$D/heard,creat,append"; fi; }
client() {
    n=0; until grep -q hello "$D/heard" 2>/dev/null; do
        if [ $F = 4 ]; then echo hello | socat -u - "UDP4-SENDTO:239.1.1.1:7004,ip-multicast-if=$C,ip-multicast-ttl=2"; else echo hello | socat -u - "UDP6-SENDTO:[ff05::7]:7004,bind=[$C]"; fi
        n=$((n + 1)); [ $n -lt 50 ] || return 1; sleep 0.1
    done
}
