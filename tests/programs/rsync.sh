# rsync's daemon
# packages: rsync
# admit: tcp/873
server() {
    mkdir "$D/module"; head -c 6000 /dev/urandom >"$D/module/file"
    printf 'use chroot = no\nreverse lookup = no\nuid = root\ngid = root\n[module]\npath = %s/module\n' "$D" >"$D/conf"
    exec rsync --daemon --no-detach --config "$D/conf" --address "$S"
}
client() { rsync -r "rsync://$SU/module/" "$D/got/" && cmp "$D/module/file" "$D/got/file"; }
