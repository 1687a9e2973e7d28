# NTP: chronyd serves, another asks
# packages: chrony
# admit: udp/123
server() { printf 'local stratum 8\nallow all\nbindaddress %s\ncmdport 0\nbindcmdaddress /\npidfile %s/server.pid\n' "$S" "$D" >"$D/conf"; exec chronyd -x -d -u root -f "$D/conf"; }
client() { chronyd -x -Q -t 8 -u root "pidfile $D/client.pid" 'cmdport 0' "server $S iburst" >"$D/out" 2>&1; grep -q 'System clock wrong\|wrong by' "$D/out"; }
