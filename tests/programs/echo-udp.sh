# UDP, answered from the port that was asked
# packages: socat
# admit: udp/7003
server() { exec socat "UDP$F-LISTEN:7003,fork,reuseaddr" EXEC:cat; }
client() { echo hello | socat -t 1 - "UDP$F:$SU:7003" | grep -q hello; }
long() { while echo tick; do sleep 0.1; done | socat - "UDP$F:$SU:7003"; }
