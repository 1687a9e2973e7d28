# IPsec in user space: strongSwan's charon with libipsec, ESP in UDP
# packages: strongswan-charon libcharon-extra-plugins strongswan-swanctl
# admit: udp/500 udp/4500
one() { # name, own address, peer's, own inner, peer's inner
    printf 'charon { load = random nonce gmp aes sha1 sha2 hmac kdf kernel-libipsec kernel-netlink socket-default vici\n install_routes = yes\n filelog { stderr { default = 1 } }\n plugins { vici { socket = unix://%s/%s.vici } } }\n' "$D" "$1" >"$D/$1.conf"
    printf 'connections { c { version = 2\n local_addrs = %s\n remote_addrs = %s\n encap = yes\n local { auth = psk\n id = %s }\n remote { auth = psk\n id = %s }\n proposals = aes128-sha256-modp2048\n children { n { esp_proposals = aes128-sha256\n local_ts = %s/32\n remote_ts = %s/32 } } } }\nsecrets { ike { secret = secret } }\n' "$2" "$3" "$2" "$3" "$4" "$5" >"$D/$1.swan"
    ip address add "$4/32" dev lo
    STRONGSWAN_CONF="$D/$1.conf" /usr/lib/ipsec/charon >"$D/$1.log" 2>&1 & pid=$!
    n=0; until swanctl -q -u "unix://$D/$1.vici" -f "$D/$1.swan" >>"$D/$1.log" 2>&1; do n=$((n + 1)); [ $n -lt 50 ] || return 1; sleep 0.1; done
}
private() { exec unshare -m sh -c "mount -t tmpfs none /run; . $P/ipsec.sh; $1"; }
server() { private 'one server "$S" "$C" 10.96.0.2 10.96.0.1; echo >$D/ready; wait'; }
client() { (private 'one client "$C" "$S" 10.96.0.1 10.96.0.2 && swanctl -i -u "unix://$D/client.vici" --child n && ping -n -q -I 10.96.0.1 -c 3 -i 0.1 -W 5 10.96.0.2; code=$?; kill $pid; exit $code'); }
