# A TCP connection shut at one side, answered by the other after
# packages: socat
# admit: tcp/7001
server() { exec socat "TCP$F-LISTEN:7001,fork,reuseaddr" SYSTEM:'cat >/dev/null; echo ended'; }
client() { echo hello | socat -t 5 - "TCP$F:$SU:7001" | grep -q ended; }
