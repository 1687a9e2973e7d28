# SCTP, in user space over raw sockets: usrsctp's echo server and client
# packages: libusrsctp-examples
# families: 4
# admit: sctp
# alive: 1
server() { exec /usr/lib/usrsctp/echo_server; }
client() { (sleep 1; echo hello; sleep 1) | timeout 6 /usr/lib/usrsctp/client "$S" 7 | grep -q hello; }
