# OpenVPN over UDP
# packages: openvpn openssl
# admit: udp/1194
server() {
    for n in server client; do openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$D/$n.key" -out "$D/$n.crt" -subj /CN=$n -days 2 2>/dev/null; done
    printf 1 >"$D/ready"
    exec openvpn --dev tun --ifconfig 10.98.0.2 10.98.0.1 --proto "udp$F" --local "$S" --port 1194 --tls-server --dh none --cert "$D/server.crt" --key "$D/server.key" --peer-fingerprint "$(fp client)" --keepalive 1 10 --tun-mtu 1300 --data-ciphers AES-256-GCM
}
fp() { openssl x509 -in "$D/$1.crt" -noout -fingerprint -sha256 | cut -d= -f2; }
tunnel() {
    : >"$D/tunnel.log"
    openvpn --dev tun --ifconfig 10.98.0.1 10.98.0.2 --proto "udp$F" --remote "$S" 1194 --nobind --tls-client --cert "$D/client.crt" --key "$D/client.key" --peer-fingerprint "$(fp server)" --keepalive 1 10 --tun-mtu 1300 --data-ciphers AES-256-GCM >"$D/tunnel.log" 2>&1 & pid=$!
    n=0; until grep -q 'Initialization Sequence Completed' "$D/tunnel.log"; do n=$((n + 1)); [ $n -lt 100 ] || return 1; sleep 0.1; done
}
client() { tunnel && ping -n -q -c 3 -i 0.1 -W 5 10.98.0.2; code=$?; kill $pid; return $code; }
# Nothing goes another way when the tunnel is gone.
long() { ip route replace unreachable 10.98.0.0/16; tunnel && exec ping -n -i 0.1 10.98.0.2; }
