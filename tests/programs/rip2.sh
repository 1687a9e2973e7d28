# RIP
# packages: bird2
# alive: 1
# families: 4
conf() { cat <<CONF
router id $1;
log stderr all;
protocol device { }
protocol static { ipv4; route 10.77.0.0/24 blackhole; } protocol rip r { ipv4 { import all; export where source = RTS_STATIC; }; interface "eth0" { update time 2; }; }
CONF
}
server() { conf 10.0.1.2 "$C" >"$D/server.conf"; exec bird -f -c "$D/server.conf" -s "$D/server.ctl" -P "$D/server.pid"; }
client() {
    conf 10.0.1.1 "$S" >"$D/client.conf"
    rm -f "$D/client.ctl"
    bird -f -c "$D/client.conf" -s "$D/client.ctl" -P "$D/client.pid" >"$D/client.log" 2>&1 &
    n=0; until birdc -s "$D/client.ctl" show rip neighbors 2>/dev/null | grep -q "10.0.1"; do n=$((n + 1)); [ $n -lt 250 ] || return 1; sleep 0.1; done
}
