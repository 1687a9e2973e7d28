# A proxy before a web server, kept alive: haproxy, nginx, wrk
# packages: haproxy nginx-light wrk
# admit: tcp/8081
server() {
    head -c 500 /dev/zero | tr '\0' a >"$D/page"
    printf 'pid %s/pid; error_log stderr; user root; events {}\nhttp { access_log off; client_body_temp_path %s; server { listen 127.0.0.1:80; root %s; } }\n' "$D" "$D" "$D" >"$D/nginx"
    nginx -c "$D/nginx" -e stderr
    printf 'defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\nfrontend f\n bind %s:8081\n default_backend b\nbackend b\n server s 127.0.0.1:80\n' "$SB" >"$D/haproxy"
    exec haproxy -db -f "$D/haproxy"
}
client() { wrk -t 1 -c 2 -d 1 "http://$SU:8081/page" | tee "$D/wrk" | grep -q Requests/sec && ! grep -q 'Socket errors\|Non-2xx' "$D/wrk"; }
