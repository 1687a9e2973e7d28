# FTP, active: the server opens the data connection, so the client's group must admit TCP from the server
# packages: vsftpd curl
# admit: tcp/21
# admit-client: tcp
server() {
    mkdir -p "$D/files" "$D/empty"; head -c 6000 /dev/zero >"$D/files/file"
    if [ "$F" = 4 ]; then listen=listen=YES; address=listen_address=$S; else listen=listen_ipv6=YES; address=listen_address6=$S; fi
    printf '%s\n' $listen $address background=NO anonymous_enable=YES no_anon_password=YES anon_root="$D/files" secure_chroot_dir="$D/empty" seccomp_sandbox=NO connect_from_port_20=YES $(test "$F" = 6 || echo listen_ipv6=NO) isolate_network=NO >"$D/conf"
    exec vsftpd "$D/conf"
}
client() { test "$(curl -sS -g -m 10 --ftp-port - "ftp://$SU/file" | wc -c)" = 6000; }
