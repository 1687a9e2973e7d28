#!/bin/sh
# The kernel's packet generator: scenarios udp-1k, udp-1m and imix of ../packets.py. It sends UDP only, so syn and vxlan are for the others.
#
#   weft.sh [-n] SCENARIO INTERFACE [SECONDS]
#
# Sends from one thread, by default for 10 seconds, then prints the rate. -n prints what would be written to /proc/net/pktgen, and does nothing.
set -eu

dry=
if [ "${1-}" = -n ]; then
    dry=1
    shift
fi
if [ $# -lt 2 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
scenario=$1 interface=$2 seconds=${3-10}
thread=${THREAD-0}
# Frames that are made once and sent so often: more than 1 needs a driver that does not change them, and none of the counters may move.
clones=0
burst=${BURST-32}

write() {
    if [ -n "$dry" ]; then
        echo "$1: $2"
    elif ! echo "$2" > "/proc/net/pktgen/$1"; then
        echo "weft.sh: $1 does not take '$2'" >&2
        exit 1
    fi
}

case $scenario in
    udp-1k | imix) last_port=9 ;;
    udp-1m) last_port=1031 ;;
    *)
        echo "weft.sh: $scenario is none of udp-1k, udp-1m, imix" >&2
        exit 2
        ;;
esac

[ -n "$dry" ] || modprobe pktgen
write pgctrl reset
write "kpktgend_$thread" rem_device_all
write "kpktgend_$thread" "add_device $interface"
write "$interface" "count 0"
write "$interface" "clone_skb $clones"
write "$interface" "delay 0"
write "$interface" "src_mac 02:00:00:00:01:01"
write "$interface" "dst_mac 02:00:00:00:01:02"
write "$interface" "src_min 10.0.1.11"
write "$interface" "src_max 10.0.1.11"
write "$interface" "dst_min 10.0.1.12"
write "$interface" "dst_max 10.0.1.12"
# Both count with every packet, each for itself.
write "$interface" "udp_src_min 1024"
# A maximum is the first port that is not sent any more, unless there is one port only.
write "$interface" "udp_src_max 2048"
write "$interface" "udp_dst_min 9"
if [ "$last_port" = 9 ]; then
    write "$interface" "udp_dst_max 9"
else
    write "$interface" "udp_dst_max $((last_port + 1))"
fi
if [ "$scenario" = imix ]; then
    write "$interface" "imix_weights 60,7 566,4 1444,1"
else
    write "$interface" "pkt_size 60"
    write "$interface" "burst $burst"
fi

if [ -n "$dry" ]; then
    write pgctrl start
    exit 0
fi
# Writing "start" returns when it is stopped.
(sleep "$seconds" && echo stop > /proc/net/pktgen/pgctrl) &
write pgctrl start
wait
sed -n '/^Result/,$p' "/proc/net/pktgen/$interface"
