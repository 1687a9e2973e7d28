# TLS 1.3: openssl's own server and client
# packages: openssl
# admit: tcp/4433
server() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$D/key" -out "$D/cert" -subj /CN=weft -days 2 2>/dev/null
    exec openssl s_server -accept "$SU:4433" -cert "$D/cert" -key "$D/key" -www -quiet
}
client() { printf 'GET / HTTP/1.0\r\n\r\n' | openssl s_client -connect "$SU:4433" -quiet -tls1_3 2>/dev/null | grep -q TLSv1.3; }
