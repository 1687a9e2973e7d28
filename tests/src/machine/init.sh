#!/bin/busybox sh
# The first process of a machine that is a host: its root is that of the machine that runs it, with a layer over it that is lost at the end, and its
# process 1 is systemd, which runs nothing but a journal and the agent. /run is the machine's own.
# The kernel's command line says weft.name, the machine's, and weft.modules, where the modules of its kernel are.
/bin/busybox mkdir -p /proc /sys /dev /lower /layer /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod "$module"; done
mount -t virtiofs -o ro root /lower || poweroff -f
mount -t tmpfs -o mode=755 weft /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work weft /root || poweroff -f
for word in $(cat /proc/cmdline); do
    case $word in
    weft.name=*) name=${word#*=} ;;
    weft.modules=*) modules=${word#*=} ;;
    esac
done

cd /root || poweroff -f
# Of the machine's units none starts but the journal's. What it has of weft is not this one's.
rm -rf .dockerenv etc/fstab lib/systemd/system-generators lib/systemd/system/*.wants etc/systemd/system usr/lib/modules etc/weft var/lib/weft*
mkdir -p etc/systemd/system usr/lib/modules
mount --bind "/lower$modules" usr/lib/modules
ln -s /dev/null etc/systemd/system/systemd-journald-audit.socket
cat >etc/systemd/system/weft-machine.target <<'END'
[Unit]
Description=A machine of the lab
Requires=sysinit.target systemd-journald.service weft-agent.service
After=sysinit.target systemd-journald.service
END
cat >etc/systemd/system/weft-agent.service <<'END'
[Service]
ExecStart=/bin/bash /etc/weft-agent
# What a command leaves running stays.
KillMode=process
END
cp /agent.sh etc/weft-agent
: >etc/machine-id
echo "$name" >etc/hostname
for directory in dev proc sys; do mount --move /$directory $directory; done
exec switch_root /root /lib/systemd/systemd --unit=weft-machine.target
