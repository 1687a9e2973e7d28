# traceroute, by UDP: the port is unreachable, the answer comes back
# packages: traceroute iputils-tracepath
# admit: udp
server() { exec sleep 1000; }
client() { traceroute -"$F" -n -q 1 -N 1 -w 2 -m 4 "$S" | tail -1 | grep -q "$S" && tracepath -"$F" -n -m 4 "$S" | grep -q reached; }
