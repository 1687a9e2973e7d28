-- DPDK's pktgen: scenarios udp-1k, udp-1m and imix of ../packets.py. It changes no TCP flags in a range and writes no tunnel headers in every
-- version, so syn and vxlan are replayed from captures (see ../README.md).
--
--   WEFT_SCENARIO=udp-1m WEFT_PORT=0 pktgen -l 0-2 -n 4 -- -P -m "1.0" -f bench/profiles/dpdk-pktgen/weft.lua

local scenario = os.getenv("WEFT_SCENARIO") or "udp-1k"
local port = os.getenv("WEFT_PORT") or "0"

local source_mac, destination_mac = "02:00:00:00:01:01", "02:00:00:00:01:02"
local source, destination = "10.0.1.11", "10.0.1.12"

-- Ports count by one with every packet and begin anew at their maximum, each for itself.
local function counter(set, first, last)
    set(port, "start", first)
    set(port, "min", first)
    set(port, "max", last)
    set(port, "inc", first == last and 0 or 1)
end

-- Addresses stay.
local function fixed(set, value, none)
    set(port, "start", value)
    set(port, "min", value)
    set(port, "max", value)
    set(port, "inc", none)
end

-- Sizes here count the checksum of the link, 4 bytes, which packets.py does not.
local function range(last_port)
    fixed(pktgen.range.dst_mac, destination_mac, "00:00:00:00:00:00")
    fixed(pktgen.range.src_mac, source_mac, "00:00:00:00:00:00")
    fixed(pktgen.range.src_ip, source, "0.0.0.0")
    fixed(pktgen.range.dst_ip, destination, "0.0.0.0")
    pktgen.range.ip_proto(port, "udp")
    counter(pktgen.range.src_port, 1024, 2047)
    counter(pktgen.range.dst_port, 9, last_port)
    counter(pktgen.range.pkt_size, 64, 64)
    pktgen.set_range(port, "on")
end

-- A sequence has at most 16 packets: the twelve of one round of sizes, each in a flow of its own.
local function imix()
    local place = 0
    for _, part in ipairs({ { 64, 7 }, { 570, 4 }, { 1448, 1 } }) do
        local size, weight = part[1], part[2]
        for _ = 1, weight do
            pktgen.seqTable(place, port, {
                ["eth_dst_addr"] = destination_mac,
                ["eth_src_addr"] = source_mac,
                ["ip_dst_addr"] = destination,
                ["ip_src_addr"] = source .. "/24",
                ["sport"] = 1024 + place,
                ["dport"] = 9,
                ["ethType"] = "ipv4",
                ["ipProto"] = "udp",
                ["vlanid"] = 1,
                ["pktSize"] = size,
            })
            place = place + 1
        end
    end
    pktgen.set(port, "seq_cnt", place)
end

pktgen.set(port, "count", 0)
pktgen.set(port, "rate", 100)
if scenario == "udp-1k" then
    range(9)
elseif scenario == "udp-1m" then
    range(1031)
elseif scenario == "imix" then
    imix()
else
    error(scenario .. " is none of udp-1k, udp-1m, imix")
end
pktgen.start(port)
