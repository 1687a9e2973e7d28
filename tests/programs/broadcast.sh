# UDP broadcast within the subnet
# packages: socat
# families: 4
# alive: 1
server() { exec socat -u UDP4-RECV:7005,reuseaddr "OPEN:$D/heard,creat,append"; }
client() {
    n=0; until grep -q hello "$D/heard" 2>/dev/null; do
        echo hello | socat -u - "UDP4-DATAGRAM:10.0.1.255:7005,broadcast"
        n=$((n + 1)); [ $n -lt 50 ] || return 1; sleep 0.1
    done
}
