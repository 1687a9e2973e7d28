# Echo, small and of 8 KiB
# packages: iputils-ping
# admit: icmp
server() { exec sleep 1000; }
client() { ping -"$F" -n -q -c 3 -i 0.1 -W 2 "$S" && ping -"$F" -n -q -c 2 -i 0.1 -s 8192 -W 2 "$S"; }
long() { exec ping -"$F" -n -i 0.1 "$S"; }
