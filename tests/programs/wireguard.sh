# WireGuard, in user space: wireguard-go
# packages: wireguard-go wireguard-tools
# admit: udp/51820
one() { # name, own address, peer's name, peer's address, endpoint
    # One that was killed leaves its interface to the kernel, which takes a moment to remove it.
    n=0; while ip link show wg0 >/dev/null 2>&1; do n=$((n + 1)); [ $n -lt 100 ] || return 1; sleep 0.1; done
    WG_PROCESS_FOREGROUND=1 wireguard-go -f wg0 & pid=$!
    n=0; until [ -S "/var/run/wireguard/wg0.sock" ]; do n=$((n + 1)); [ $n -lt 50 ] || return 1; sleep 0.1; done
    wg set wg0 private-key "$D/$1.key" listen-port 51820 peer "$(cat "$D/$3.pub")" allowed-ips "$4/32" $5
    ip address add "$2/24" dev wg0; ip link set wg0 up mtu 1300
}
private() { exec unshare -m sh -c "mount -t tmpfs none /run; . $P/wireguard.sh; $1"; }
server() {
    for n in server client; do wg genkey >"$D/$n.key"; wg pubkey <"$D/$n.key" >"$D/$n.pub"; done 2>/dev/null
    private 'one server 10.99.0.2 client 10.99.0.1; wait'
}
tunnel() { one client 10.99.0.1 server 10.99.0.2 "endpoint $SU:51820"; }
client() { (private 'tunnel && ping -n -q -c 3 -i 0.1 -W 5 10.99.0.2; code=$?; kill $pid; exit $code'); }
# Nothing goes another way when the tunnel is gone.
long() { ip route replace unreachable 10.99.0.0/16; private 'tunnel && exec ping -n -i 0.1 10.99.0.2'; }
