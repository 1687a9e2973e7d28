# SMB: smbd and smbclient
# packages: samba smbclient
# admit: tcp/445
server() {
    mkdir -p "$D/share" "$D/state"; head -c 6000 /dev/zero >"$D/share/file"; chmod -R a+rX "$D"
    printf '[global]\nserver role = standalone server\nmap to guest = Bad User\nguest account = nobody\ndisable netbios = yes\nsmb ports = 445\nbind interfaces only = yes\ninterfaces = %s\nload printers = no\nprivate dir = %s\nlock directory = %s\nstate directory = %s\ncache directory = %s\npid directory = %s\nncalrpc dir = %s/n\n[share]\npath = %s/share\nguest ok = yes\nread only = yes\n' eth0 "$D/state" "$D/state" "$D/state" "$D/state" "$D/state" "$D/state" "$D" >"$D/conf"
    exec smbd -F --debug-stdout --no-process-group -s "$D/conf"
}
client() { smbclient -N -s "$D/conf" "//$S/share" -I "$S" -p 445 -c "get file $D/got" && cmp "$D/share/file" "$D/got"; }
