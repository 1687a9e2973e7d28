#!/bin/bash
# Makes a machine a part of a small fabric: the controller, or a host with workloads of two tenants; then shows what crosses. Vagrant runs it on its
# machines, and `cargo xtask lab vms` on those of qemu. It may be run again, and puts back what a restart of the machine took away.
#
#   provision.sh controller HOST…   the controller, and the intent for these hosts (h1 to h9)
#   provision.sh host HOST          weftd, and three workloads in namespaces
#   provision.sh driver             what the uplink's driver does for weftd
#   provision.sh table HOST…        from the workloads of this machine, a host, to those of all: one line for each thing shown
#
# WEFT_PROGRAMS names the directory of weftd, weft-controller and weftctl (target/release of this repository).
# Addresses: 192.168.56.10 is the controller and 192.168.56.1N the host hN, in the network of management; 192.168.57.1N is hN's tunnel address.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
programs=${WEFT_PROGRAMS:-$repository/target/release}
management=192.168.56
underlay=192.168.57
export WEFT_CONTROLLER=http://$management.10:7470
# Prefixes are the same in both tenants. The tenant red has no second subnet.
tenants="blue red"
# Bytes of IP packet that a tunnel of VXLAN over IPv6 leaves of the underlay's 1500.
mtu=1430

die() {
    echo "provision: $*" >&2
    exit 1
}

number_of() {
    [[ $1 =~ ^h([1-9])$ ]] || die "a host is called h1 to h9, not '$1'"
    echo "${BASH_REMATCH[1]}"
}

# Tries a command until it succeeds, for so many seconds.
until_done() {
    local deadline=$((SECONDS + $1)) said
    shift
    until said=$("$@" 2>&1); do
        ((SECONDS < deadline)) || die "'$*' does not succeed: $said"
        sleep 0.2
    done
}

# What the machine needs besides weft: nothing is fetched that is there.
packages() {
    local tool missing=()
    for tool in ethtool iperf3 ping; do
        command -v $tool >/dev/null || missing+=("${tool/ping/iputils-ping}")
    done
    if ((${#missing[@]})); then
        DEBIAN_FRONTEND=noninteractive apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
    fi
}

# Programs, units and users, as docs/operations.md says in "Run by systemd".
install_weft() {
    local program
    for program in weftctl "$1"; do
        [[ -x $programs/$program ]] || die "$programs/$program is missing: build it, or name its directory by WEFT_PROGRAMS"
        # A program that runs cannot be written to, but replaced.
        install -m 755 "$programs/$program" "/usr/bin/$program.new"
        mv "/usr/bin/$program.new" "/usr/bin/$program"
    done
    install -D -m 644 -t /etc/systemd/system "$repository/packaging/systemd/$1.service"
    install -D -m 644 -t /etc/sysusers.d "$repository/packaging/sysusers.d/weft.conf"
    systemd-sysusers
    systemctl daemon-reload
    mkdir -p /etc/weft
}

start() {
    systemctl enable "$1"
    systemctl restart "$1" || { journalctl --no-pager -n 30 -u "$1" >&2; die "$1 does not start"; }
}

# The intent: blue-aN and red-aN have the same address and MAC, and blue-bN is in another subnet.
intent() {
    local host n tenant
    echo "hosts:"
    for host in "$@"; do
        echo "  - {id: $host, vteps: [$underlay.1$(number_of "$host")]}"
    done
    echo "vpcs: [{id: blue, vni: 100}, {id: red, vni: 200}]"
    echo "subnets:"
    for tenant in $tenants; do
        echo "  - {id: $tenant-a, vpc: $tenant, cidrs: [10.0.1.0/24, 'fd00:1::/64'], mtu: $mtu}"
    done
    echo "  - {id: blue-b, vpc: blue, cidrs: [10.0.2.0/24, 'fd00:2::/64'], mtu: $mtu}"
    echo "security_groups:"
    for tenant in $tenants; do
        echo "  - id: $tenant"
        echo "    vpc: $tenant"
        echo "    rules:"
        echo "      - {direction: ingress, protocol: icmp}"
        echo "      - {direction: ingress, protocol: icmpv6}"
        echo "      - {direction: ingress, protocol: tcp, port_min: 5201, port_max: 5201}"
        echo "      - {direction: ingress, protocol: udp, port_min: 5201, port_max: 5201}"
    done
    echo "ports:"
    for host in "$@"; do
        n=$(number_of "$host")
        for tenant in $tenants; do
            port $tenant a "$host" "$n"
        done
        port blue b "$host" "$n"
    done
}

port() { # TENANT SUBNET HOST NUMBER
    local s=1
    [[ $2 = a ]] || s=2
    echo "  - id: $1-$2$4"
    echo "    vpc: $1"
    echo "    subnet: $1-$2"
    echo "    host: $3"
    echo "    mac: '02:00:00:00:0$s:1$4'"
    echo "    addresses: [10.0.$s.1$4, 'fd00:$s::1$4']"
    echo "    security_groups: [$1]"
    echo "    device: {kind: netdev, name: p-$1-$2$4}"
}

# A namespace with a link to the host. The port is closed for the host's own stack before it is up.
workload() { # PORT SUBNET NUMBER
    local name=$1 device=p-$1 n=$3 s=1 family
    [[ $2 = a ]] || s=2
    if ! ip netns list | grep -qw "$name"; then
        ip netns add "$name"
        ip link add "$device" mtu $mtu type veth peer name eth0 netns "$name"
        weftd guard "$device"
        ip link set "$device" up
        ip -n "$name" link set lo up
        ip -n "$name" link set eth0 address "02:00:00:00:0$s:1$n" mtu $mtu up
        ip -n "$name" address add "10.0.$s.1$n/24" dev eth0
        ip -n "$name" address add "fd00:$s::1$n/64" dev eth0 nodad
        for family in "-4 10.0.$s.1" "-6 fd00:$s::1"; do
            # shellcheck disable=SC2086
            ip -n "$name" ${family% *} route add default via "${family#* }" dev eth0
        done
    fi
    if [[ $name = blue-* ]] && ! systemctl is-active --quiet "iperf3-$name"; then
        systemd-run --quiet --unit "iperf3-$name" ip netns exec "$name" iperf3 -s
    fi
}

uplink() {
    local found
    found=$(ip -o -4 address show | grep -w "$underlay\.1[1-9]/24" | cut -d' ' -f2)
    [[ -n $found ]] || die "no interface has an address of $underlay.0/24"
    echo "$found"
}

# The features of a driver that somebody may turn on and off.
features() {
    ethtool -k "$1" | grep -v fixed
}

# As they were before weftd had the device.
features_kept() {
    cat "/run/weft-features-$1" 2>/dev/null || features "$1"
}

controller() {
    packages
    install_weft weft-controller
    cat >/etc/weft/controller.toml <<END
listen = "$management.10:7470"
store = { kind = "embedded", path = "/var/lib/weft-controller/intent.redb" }
END
    start weft-controller
    intent "$@" >/etc/weft/fabric.yaml
    until_done 30 weftctl apply --prune -f /etc/weft/fabric.yaml
}

host() {
    local host=$1 n device
    n=$(number_of "$host")
    device=$(uplink)
    packages
    install_weft weftd
    cat >/etc/weft/weftd.toml <<END
host = "$host"
controller = "$WEFT_CONTROLLER"
uplinks = [{ interface = "$device" }]
workers.cores = [$(seq -s, 0 $(($(nproc) - 1)))]
END
    for tenant in $tenants; do
        workload $tenant-a"$n" a "$n"
    done
    workload blue-b"$n" b "$n"
    # The host's own traffic crosses the same card.
    systemctl is-active --quiet iperf3-own || systemd-run --quiet --unit iperf3-own iperf3 -s -B "$underlay.1$n"
    systemctl is-active --quiet weftd || features "$device" >"/run/weft-features-$device"
    start weftd
    until_done 60 is_up 3
    driver
}

# Whether so many ports are up, and none is down.
is_up() {
    local status
    status=$(weftctl node status -o json | tr -d ' \n')
    [[ $(grep -o '"up":true' <<<"$status" | wc -l) = "$1" && $status != *'"up":false'* ]] || { echo "$status"; return 1; }
}

driver() {
    local device name mode
    device=$(uplink)
    name=$(ethtool -i "$device" | sed -n 's/^driver: //p')
    mode=$(weftctl node status -o json | tr -d '\n' | grep -o "$device ([^)]*)" | head -1 || true)
    echo "driver   $name on Linux $(uname -r), MTU $(cat "/sys/class/net/$device/mtu")"
    echo "XDP      ${mode:-$device is not open}; $(journalctl --no-pager -o cat -u weftd | grep -o 'zero_copy=[a-z]*' | tail -1)"
    echo "queues   $(ethtool -l "$device" 2>/dev/null | awk '/Combined:/ {printf "%s%s", sep, $2; sep = " at most, in use "}')"
    echo "rings    $(ethtool -g "$device" 2>/dev/null | awk '/^(RX|TX):/ {printf "%s %s ", $1, $2}')"
    echo "turned   $(diff <(features_kept "$device") <(features "$device") | sed -n 's/^> *//p' | tr '\n' ';')"
    echo "kernel   $(dmesg | grep "$device: .*XDP" | sed 's/.*: //' | tail -1)"
    echo "tags     $(ethtool -k "$device" | grep rx-vlan | tr '\n\t' '; ')"
}

failed=0
line() { # VERDICT NAME FIGURE UNIT
    printf '%-4s  %-36s  %10s  %s\n' "$1" "$2" "$3" "$4"
    [[ $1 = pass ]] || failed=1
}

# One line for a command that must succeed and prints a figure, which must be more than the least.
shown() { # NAME UNIT LEAST COMMAND…
    local name=$1 unit=$2 least=$3 figure
    shift 3
    if figure=$("$@" 2>/dev/null) && awk -v f="$figure" -v l="$least" 'BEGIN {exit !(f > l)}'; then
        line pass "$name" "$figure" "$unit"
    else
        line FAIL "$name" "${figure:-none}" "$unit"
    fi
}

# How many of ten pings are answered, if all are.
pings() { # FROM ADDRESS
    ip netns exec "$1" ping -q -n -i 0.05 -W 2 -c 10 "$2" | sed -n 's/.* \([0-9]*\) received, 0% .*/\1/p'
}

# The lines that iperf3 prints for people hold what came, at the receiver.
throughput() { # FROM ADDRESS ARGS…
    ip netns exec "$1" iperf3 -f m -t 3 -c "${@:2}" | awk '/receiver/ {for (i = 2; i <= NF; i++) if ($i == "Mbits/sec") print $(i - 1)}'
}

own_throughput() { # ADDRESS ARGS…
    iperf3 -f m -t 3 -c "$@" | awk '/receiver/ {for (i = 2; i <= NF; i++) if ($i == "Mbits/sec") print $(i - 1)}'
}

# The blue servers do not answer the tenant red, though their address does.
unheard() { # FROM ADDRESS
    ! ip netns exec "$1" timeout 3 bash -c "exec 3<>/dev/tcp/$2/5201" && echo 1
}

table() {
    local n m host
    n=$(uplink_number)
    until_done 60 weftctl hosts --wait 10
    line pass "hosts attached" "$(weftctl hosts | awk '$2 == "yes"' | wc -l)" "of $# have the intent in force"
    for host in "$@"; do
        m=$(number_of "$host")
        [[ $m != "$n" ]] || continue
        # Neighbours of the underlay are asked for now.
        until_done 20 ip netns exec "blue-a$n" ping -q -c 1 -W 1 "10.0.1.1$m"
        shown "h$n to $host, one subnet, IPv4" "of 10 pings" 9 pings "blue-a$n" "10.0.1.1$m"
        shown "h$n to $host, one subnet, IPv6" "of 10 pings" 9 pings "blue-a$n" "fd00:1::1$m"
        shown "h$n to $host, routed, IPv4" "of 10 pings" 9 pings "blue-a$n" "10.0.2.1$m"
        shown "h$n to $host, routed, IPv6" "of 10 pings" 9 pings "blue-a$n" "fd00:2::1$m"
        shown "h$n to $host, the other tenant" "of 10 pings, by the same address" 9 pings "red-a$n" "10.0.1.1$m"
        shown "isolation of blue from red" "connection refused to the other tenant" 0 unheard "red-a$n" "10.0.1.1$m"
        shown "TCP, h$n to $host, IPv4" "Mbit/s, one stream (iperf3)" 1 throughput "blue-a$n" "10.0.1.1$m"
        shown "TCP, $host to h$n, IPv4" "Mbit/s, one stream (iperf3)" 1 throughput "blue-a$n" "10.0.1.1$m" -R
        shown "TCP, h$n to $host, IPv6" "Mbit/s, one stream (iperf3)" 1 throughput "blue-a$n" "fd00:1::1$m"
        shown "TCP, h$n to $host, no tunnel" "Mbit/s, of the hosts themselves" 1 own_throughput "$underlay.1$m"
        shown "TCP, $host to h$n, no tunnel" "Mbit/s, of the hosts themselves" 1 own_throughput "$underlay.1$m" -R
        shown "UDP, h$n to $host, IPv4" "Mbit/s of 5 sent (iperf3)" 4.5 throughput "blue-a$n" "10.0.1.1$m" -u -b 5M -l 1200
        shown "UDP, $host to h$n, IPv6" "Mbit/s of 5 sent (iperf3)" 4.5 throughput "blue-a$n" "fd00:1::1$m" -u -b 5M -l 1200 -R
    done
    return $failed
}

uplink_number() {
    ip -o -4 address show | sed -n "s/.* $underlay\.1\([1-9]\)\/24.*/\1/p"
}

case "${1:-}" in
controller | table)
    (($# > 1)) || die "which hosts?"
    "$@"
    ;;
host)
    (($# == 2)) || die "which host?"
    host "$2"
    ;;
driver) driver ;;
*) die "what? See the first lines of $0" ;;
esac
