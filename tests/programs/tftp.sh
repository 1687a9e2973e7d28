# TFTP as PXE uses it: the answer comes from another port than was asked, so the client's group must admit UDP from the server
# packages: dnsmasq-base tftp-hpa
# admit: udp/69
# admit-client: udp
server() {
    head -c 6000 /dev/zero | tr '\0' p >"$D/pxe"
    exec dnsmasq -k -C /dev/null -u root --pid-file= -p 0 --enable-tftp --tftp-root="$D" --listen-address="$S" --bind-interfaces
}
client() { cd "$D" && tftp "-$F" "$S" -c get pxe got && cmp pxe got; }
