# git's own protocol
# packages: git
# admit: tcp/9418
server() {
    git init -q -b main "$D/repo" && cd "$D/repo" && head -c 3000 /dev/urandom >file && git add file && git -c user.name=n -c user.email=e@x commit -q -m first
    exec git daemon --base-path="$D" --export-all --listen="$S"
}
client() { rm -rf "$D/clone"; git clone -q "git://$SU/repo" "$D/clone" && cmp "$D/repo/file" "$D/clone/file"; }
