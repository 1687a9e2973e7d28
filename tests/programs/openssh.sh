# Secure shell: OpenSSH
# packages: openssh-server openssh-client
# admit: tcp/2222
server() {
    mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$D/host"; ssh-keygen -q -t ed25519 -N '' -f "$D/key"
    cp "$D/key.pub" "$D/authorized"
    exec /usr/sbin/sshd -D -e -f /dev/null -h "$D/host" -o ListenAddress="$SU" -p 2222 -o PidFile=none -o StrictModes=no -o AuthorizedKeysFile="$D/authorized" -o PermitRootLogin=yes -o UsePAM=no
}
ssh_() { ssh -F none -i "$D/key" -p 2222 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "root@$S" "$@"; }
client() { test "$(ssh_ echo works)" = works; }
long() { ssh_ 'while echo tick; do sleep 0.1; done'; }
