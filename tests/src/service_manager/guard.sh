# Runs a systemd of its own in a network namespace, for as long as standard input is open: when whoever holds the other end lets go of it,
# or dies, everything that ran here ends, and the control groups go. Mounts go with the mount namespace that this runs in, processes with
# their PID namespace.
#
# Arguments: the network namespace, which gives the control group its name, and the script that boots.

set -eu
namespace=$1
boot=$2

# The second hierarchy of control groups, wherever the machine has it: for us, over a directory that is there on every machine.
mount -t cgroup2 cgroup2 /mnt
group=/mnt/$namespace
mkdir "$group"

# --kill-child is for the case that this script is killed as well.
ip netns exec "$namespace" unshare --mount --pid --fork --kill-child sh -c "$boot" boot "$group" </dev/null 2>&1 &
machine=$!
# What is said now is theirs, and ends with them.
exec >/dev/null

# No line ever comes, so this waits for the end.
read -r _ || true
# Again and again, since a boot that has just begun may not be in the group yet; until the group is gone.
while echo 1 >"$group/cgroup.kill"; do
    sleep 0.02
done 2>/dev/null &
wait $machine || true
find "$group" -depth -type d -exec rmdir {} +
wait
