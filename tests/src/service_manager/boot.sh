# Process 1 of its own PID namespace: makes the root directory and becomes systemd. Prints its PID in the namespace outside, or why there
# is none.
#
# The root is the machine's own with a layer over it that is lost at the end. systemd sees the kernel's interfaces as in a container: what
# belongs to the whole machine can be read and not written.
#
# Argument: the control group that everything is to be in, a directory of the second hierarchy.

set -eu
# /proc is that of the namespace outside still.
read -r pid _ </proc/self/stat
echo 0 >"$1/cgroup.procs"

root=/mnt/root
mount -t tmpfs -o mode=755 weft /mnt
mkdir /mnt/upper /mnt/work "$root"
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work weft "$root"
cd "$root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
for directory in run tmp var/tmp; do
    mount -t tmpfs weft "$directory"
done
mount -t tmpfs -o mode=755 weft dev
for device in null zero full random urandom tty net/tun; do
    mkdir -p "dev/$(dirname "$device")"
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs weft dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

# Of the machine's units none starts but the journal's.
rm -rf etc/fstab lib/systemd/system-generators lib/systemd/system/*.wants etc/systemd/system run/systemd
mkdir -p etc/systemd/system
ln -s /dev/null etc/systemd/system/systemd-journald-audit.socket
cat >etc/systemd/system/weft-lab.target <<'END'
[Unit]
Description=A host of the lab
Requires=sysinit.target systemd-journald.service
After=sysinit.target systemd-journald.service
END
echo 11111111111111111111111111111111 >etc/machine-id

exec unshare --cgroup --uts --ipc sh -c "
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mkdir dev/old && pivot_root . dev/old && cd / && umount -l /dev/old && rmdir /dev/old
    echo $pid
    exec env -i container=weft PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=weft-lab.target >/dev/null 2>&1
"
