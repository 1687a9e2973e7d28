# VXLAN between the containers themselves, the kernel's: an answer comes from another port than was sent to, so both groups must admit the port
# packages: iproute2 iputils-ping
# admit: udp/4789
# admit-client: udp/4789
device() { ip link show v0 >/dev/null 2>&1 || { ip link add v0 type vxlan id 7 local "$1" remote "$2" dstport 4789 dev eth0; ip address add "$3/24" dev v0; ip link set v0 mtu 1300 up; }; }
server() { device "$S" "$C" 10.97.0.2; exec sleep 1000; }
client() { device "$C" "$S" 10.97.0.1; ping -n -q -c 3 -i 0.1 -W 5 10.97.0.2; }
long() { device "$C" "$S" 10.97.0.1; exec ping -n -i 0.1 10.97.0.2; }
