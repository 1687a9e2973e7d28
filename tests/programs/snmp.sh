# SNMP: snmpd and snmpwalk
# packages: snmpd snmp
# admit: udp/161
server() { printf 'rocommunity public\nrocommunity6 public\nsysLocation here\n' >"$D/conf"; [ $F = 4 ] && a=udp:$S:161 || a="udp6:[$S]:161"; exec snmpd -f -Lo -C -c "$D/conf" -I system_mib -p "$D/pid" "$a"; }
client() { [ $F = 4 ] && a=udp:$S:161 || a="udp6:[$S]:161"; snmpwalk -v2c -c public "$a" 1.3.6.1.2.1.1 | grep -q here; }
