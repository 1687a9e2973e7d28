# SCTP, in user space over raw sockets: usrsctp's echo server and client
# packages: libusrsctp-examples
# families: 4
# admit: sctp
# alive: 1
server() { exec /usr/lib/usrsctp/echo_server; }
# The client ends the association at the end of its input, which comes after the answer.
heard() { grep -q hello "$D/heard"; }
client() {
    : >"$D/heard"
    { echo hello; n=0; until heard || [ $n -ge 50 ]; do n=$((n + 1)); sleep 0.1; done; } | timeout 10 /usr/lib/usrsctp/client "$S" 7 >"$D/heard"
    heard
}
