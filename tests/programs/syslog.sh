# syslog over UDP: logger
# packages: bsdutils socat
# admit: udp/514
server() { exec socat -u "UDP$F-RECV:514" "OPEN:$D/heard,creat,append"; }
client() {
    n=0; until grep -q hello "$D/heard" 2>/dev/null; do
        logger -n "$S" -P 514 -d hello; n=$((n + 1)); [ $n -lt 50 ] || return 1; sleep 0.1
    done
}
