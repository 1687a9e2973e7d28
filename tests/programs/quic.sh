# QUIC, HTTP/3: ngtcp2's server and client
# packages: ngtcp2-server ngtcp2-client openssl
# admit: udp/4434
server() {
    head -c 6000 /dev/zero >"$D/file"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$D/key" -out "$D/cert" -subj /CN=weft -days 2 2>/dev/null
    exec gtlsserver -q -d "$D" "$S" 4434 "$D/key" "$D/cert"
}
client() { gtlsclient -q --exit-on-all-streams-close --timeout=5s --download "$D/got" "$S" 4434 "https://$SU:4434/file" || [ ! -d "$D/got" ]; mkdir -p "$D/got"; gtlsclient -q --exit-on-all-streams-close --timeout=5s --download "$D/got" "$S" 4434 "https://$SU:4434/file" && cmp "$D/file" "$D/got/file"; }
