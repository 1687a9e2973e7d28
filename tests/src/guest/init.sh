#!/bin/busybox sh
# The first and only service of a guest: loads the modules of virtio and VLANs, then runs the lines that come over the second serial port.
# A line is "NUMBER SECONDS COMMAND"; the answer is the command's output between two marked lines, the last of which carries its exit code.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /etc /sbin /usr/bin /usr/sbin /var/run
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
for module in /modules/*.ko; do insmod "$module"; done
ip link set lo up

# In a process of its own: orphans are this one's to bury, and a shell that is told of a child's end while it reads loses what it has read.
(
    stty raw -echo
    echo "#up $(cat /proc/sys/kernel/random/boot_id)"
    while read -r number seconds line; do
        echo "#begin $number"
        timeout -s KILL "$seconds" sh -c "$line" </dev/null 2>&1
        printf '\n#end %s %s\n' "$number" "$?"
    done
) </dev/ttyS1 >/dev/ttyS1 2>&1
poweroff -f
