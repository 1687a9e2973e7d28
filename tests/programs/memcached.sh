# Memcached over TCP
# packages: memcached socat
# admit: tcp/11211
server() { exec memcached -u root -l "$S" -p 11211 -U 0 -m 8 -t 1; }
client() { printf 'set k 0 60 5\r\nworks\r\nget k\r\nquit\r\n' | socat -t 5 - "TCP$F:$SU:11211" | grep -q works; }
