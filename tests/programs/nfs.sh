# NFS version 4, in user space: nfs-ganesha and libnfs
# packages: nfs-ganesha nfs-ganesha-vfs libnfs-utils
# admit: tcp/2049
server() { mkdir "$D/export"; head -c 6000 /dev/zero >"$D/export/file"; chmod -R a+rX "$D"
    printf 'NFS_CORE_PARAM { Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; Bind_addr = %s; }\nNFSv4 { RecoveryBackend = fs; Graceless = true; }\nEXPORT { Export_Id = 1; Path = %s/export; Pseudo = /export; Access_Type = RW; Squash = None; SecType = sys; FSAL { Name = VFS; } }\n' "$S" "$D" >"$D/conf"
    exec unshare -m sh -c "mount -t tmpfs none /var/lib/nfs; mkdir -p /var/lib/nfs/ganesha; mount -t tmpfs none /run; mkdir -p /run/ganesha; exec ganesha.nfsd -F -f $D/conf -L /dev/stderr -p $D/pid"
}
client() { test "$(nfs-cat "nfs://$S/export/file?version=4" | wc -c)" = 6000; }
