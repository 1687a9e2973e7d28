# Memcached over UDP
# packages: memcached socat
# admit: udp/11211
server() { exec memcached -u root -l "$S" -p 0 -U 11211 -m 8 -t 1; }
client() { printf '\000\001\000\000\000\001\000\000version\r\n' | socat -t 1 - "UDP$F:$SU:11211" | grep -q VERSION; }
