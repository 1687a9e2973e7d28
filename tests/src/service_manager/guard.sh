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

ip netns exec "$namespace" unshare --mount --pid --fork --kill-child sh -c "$boot" boot "$group" </dev/null 2>/dev/null &

# No line ever comes, so this waits for the end.
read -r _ || true
echo 1 >"$group/cgroup.kill"
wait
find "$group" -depth -type d -exec rmdir {} +
