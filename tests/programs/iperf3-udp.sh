# iperf3 over UDP, datagrams of 8 KiB: fragments
# packages: iperf3
# admit: tcp/5201 udp/5201
server() { exec iperf3 -s -B "$S"; }
client() { iperf3 -c "$S" -u -n 64K -l 8192 -b 4M --cport 40100 >"$D/out" && grep -q '(0%).*receiver' "$D/out"; }
