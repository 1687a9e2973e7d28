# iperf3 over TCP
# packages: iperf3
# admit: tcp/5201
server() { exec iperf3 -s -B "$S"; }
client() { iperf3 -c "$S" -n 40K -l 4K >/dev/null; }
long() { exec iperf3 -c "$S" -t 60 -i 0.2 -b 4M --forceflush; }
