# Multicast DNS: a responder of avahi's answers a query
# packages: avahi-daemon socat
# alive: 1
server() {
    printf '[server]\nhost-name=weft-test\nuse-ipv4=%s\nuse-ipv6=%s\nallow-interfaces=eth0\nenable-dbus=no\n[publish]\npublish-workstation=no\n[rlimits]\n' $([ $F = 4 ] && echo yes no || echo no yes) >"$D/conf"
    exec unshare -m sh -c "mount -t tmpfs none /run && exec avahi-daemon --no-drop-root --no-chroot -f $D/conf"
}
client() {
    # A question for weft-test.local, A or AAAA, from a port of its own: the answer comes to that port alone (RFC 6762 6.7).
    if [ $F = 4 ]; then to="UDP4-DATAGRAM:224.0.0.251:5353,bind=$C"; kind='\001'; else to="UDP6-DATAGRAM:[ff02::fb%eth0]:5353,bind=[$C]"; kind='\034'; fi
    printf '\000\007\000\000\000\001\000\000\000\000\000\000\011weft-test\005local\000\000'$kind'\000\001' | socat -t 1 - "$to" | grep -aq weft-test
}
