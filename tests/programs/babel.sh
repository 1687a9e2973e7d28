# Babel
# packages: bird2
# alive: 1
# families: 6
conf() { cat <<CONF
router id $1;
log stderr all;
protocol device { }
protocol babel b { ipv6 { import all; }; interface "eth0" { type wired; hello interval 1s; }; }
CONF
}
server() { conf 10.0.1.2 "$C" >"$D/server.conf"; exec bird -f -c "$D/server.conf" -s "$D/server.ctl" -P "$D/server.pid"; }
client() {
    conf 10.0.1.1 "$S" >"$D/client.conf"
    rm -f "$D/client.ctl"
    bird -f -c "$D/client.conf" -s "$D/client.ctl" -P "$D/client.pid" >"$D/client.log" 2>&1 &
    n=0; until birdc -s "$D/client.ctl" show babel neighbors 2>/dev/null | grep -q "fe80"; do n=$((n + 1)); [ $n -lt 250 ] || return 1; sleep 0.1; done
}
