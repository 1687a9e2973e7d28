# HTTP/1.1: nginx and curl
# packages: nginx-light curl
# admit: tcp/80
server() {
    head -c 9000 /dev/zero | tr '\0' a >"$D/page"
    head -c 40000000 /dev/zero | tr '\0' b >"$D/large"
    printf 'daemon off; pid %s/pid; error_log stderr; user root; events {}\nhttp { access_log off; client_body_temp_path %s; server { listen %s:80; root %s; location /large { limit_rate 60k; } } }\n' "$D" "$D" "$SU" "$D" >"$D/conf"
    exec nginx -c "$D/conf" -e stderr
}
client() { test "$(curl -sS -m 10 -g "http://$SU/page" | wc -c)" = 9000; }
long() { exec curl -sS -g -N "http://$SU/large"; }
