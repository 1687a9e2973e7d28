# DNS: dnsmasq and dig, with EDNS, and TCP when the answer was cut off
# packages: dnsmasq-base bind9-dnsutils
# admit: udp/53 tcp/53
server() {
    n=1; while [ $n -lt 60 ]; do echo "host-record=many.test,10.9.0.$n" >>"$D/conf"; echo "txt-record=long.test,$(printf '%0200d' $n)" >>"$D/conf"; n=$((n + 1)); done
    exec dnsmasq -k -C "$D/conf" -u root --pid-file= --no-resolv --no-hosts --listen-address="$S" --bind-interfaces --edns-packet-max=1232
}
client() {
    test "$(dig +short "@$S" many.test +noedns +ignore +time=2 A | wc -l)" -ge 10 &&
    test "$(dig +short "@$S" many.test +bufsize=1232 +time=2 A | wc -l)" -ge 50 &&
    test "$(dig +short "@$S" long.test TXT +time=2 | wc -l)" -ge 50
}
