# BGP
# packages: bird2
# alive: 1
# admit: tcp/179
conf() { cat <<CONF
router id $1;
log stderr all;
protocol device { }
protocol bgp b { local as 65001; neighbor $2 as 65001; connect delay time 1; connect retry time 1; error wait time 1,1; hold time 9; ipv4 { }; ipv6 { }; }
CONF
}
server() { conf 10.0.1.2 "$C" >"$D/server.conf"; exec bird -f -c "$D/server.conf" -s "$D/server.ctl" -P "$D/server.pid"; }
client() {
    conf 10.0.1.1 "$S" >"$D/client.conf"
    rm -f "$D/client.ctl"
    bird -f -c "$D/client.conf" -s "$D/client.ctl" -P "$D/client.pid" >"$D/client.log" 2>&1 &
    n=0; until birdc -s "$D/client.ctl" show protocols b 2>/dev/null | grep -q "Established"; do n=$((n + 1)); [ $n -lt 250 ] || return 1; sleep 0.1; done
}
