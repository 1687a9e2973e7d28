# A TCP connection with now and then a line
# packages: socat
# admit: tcp/7002
server() { exec socat "TCP$F-LISTEN:7002,fork,reuseaddr" EXEC:cat; }
client() { echo hello | socat -t 5 - "TCP$F:$SU:7002" | grep -q hello; }
long() { while echo tick; do sleep 0.1; done | socat - "TCP$F:$SU:7002"; }
