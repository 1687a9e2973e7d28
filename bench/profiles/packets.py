#!/usr/bin/env python3
"""The packets of the profiles, byte for byte: what every generator here is configured to send.

    packets.py hex SCENARIO FIRST COUNT    packets in hexadecimal, one per line
    packets.py pcap SCENARIO COUNT FILE    packets for generators that replay a capture

Needs nothing but Python. Scenarios:

    udp-1k    60 bytes, a to b, 1024 flows: the source port counts
    udp-1m    the same, 1047552 flows: the destination port counts too, round 1023 ports, and 1023 and 1024 have no common divisor
    imix      the flows of udp-1k in frames of 60, 566 and 1444 bytes, 7 : 4 : 1
    syn       TCP SYN, a to b, never the same connection twice in 22 million packets
    vxlan     what host h2 sends to host h1: replies of b to a, VNI 100, 110 bytes
"""
import struct
import sys

MAC_A, MAC_B = bytes.fromhex("020000000101"), bytes.fromhex("020000000102")
IP_A, IP_B = bytes([10, 0, 1, 11]), bytes([10, 0, 1, 12])
# The uplinks' MACs: put yours in.
MAC_H1, MAC_H2 = bytes.fromhex("060000000001"), bytes.fromhex("060000000002")
VTEP_H1, VTEP_H2 = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
VNI = 100

SOURCE_PORTS = (1024, 2047)
PORT = 9
PORTS = (9, 1031)
SYN_SOURCE_PORTS = (1024, 65535)
SYN_PORTS = (80, 1102)
TUNNEL_PORTS = (49152, 50175)
IMIX = ((60, 7), (566, 4), (1444, 1))


def counted(bounds, n):
    """The number that a counter within bounds shows after n steps."""
    low, high = bounds
    return low + n % (high - low + 1)


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(macs, addresses, protocol, payload):
    """An Ethernet frame: MACs as destination and source, addresses as source and destination."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0) + addresses[0] + addresses[1]
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return macs[0] + macs[1] + b"\x08\x00" + head + payload


def udp(macs, addresses, ports, payload):
    """A UDP frame without a checksum."""
    head = struct.pack("!HHHH", ports[0], ports[1], 8 + len(payload), 0)
    return ipv4(macs, addresses, 17, head + payload)


def forward(n, size, ports=(PORT, PORT)):
    """A frame of so many bytes (without the checksum of the link) from a to b."""
    ports = (counted(SOURCE_PORTS, n), counted(ports, n))
    return udp((MAC_B, MAC_A), (IP_A, IP_B), ports, b"\x77" * (size - 42))


def syn(n):
    """A SYN. Urgent pointer and sequence number go down as the ports go up, so that one checksum fits all."""
    source, port = counted(SYN_SOURCE_PORTS, n), counted(SYN_PORTS, n)
    sequence = 0x10000 | 0xFFFF - port
    head = struct.pack("!HHIIBBHHH", source, port, sequence, 0, 0x50, 2, 0xFFFF, 0, 0xFFFF - source)
    pseudo = IP_A + IP_B + struct.pack("!HH", 6, len(head))
    head = head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]
    # The link's shortest frame is longer.
    return ipv4((MAC_B, MAC_A), (IP_A, IP_B), 6, head) + b"\0" * 6


def vxlan(n):
    """A reply of b to a in a tunnel (RFC 7348)."""
    inner = udp((MAC_A, MAC_B), (IP_B, IP_A), (PORT, counted(SOURCE_PORTS, n)), b"\x77" * 18)
    head = struct.pack("!II", 0x08000000, VNI << 8)
    return udp((MAC_H1, MAC_H2), (VTEP_H2, VTEP_H1), (counted(TUNNEL_PORTS, n), 4789), head + inner)


def imix(n):
    """The sizes come in turn, each as often as its weight says."""
    place = n % sum(weight for _, weight in IMIX)
    for size, weight in IMIX:
        if place < weight:
            return forward(n, size)
        place -= weight
    raise AssertionError("weights add up")


SCENARIOS = {
    "udp-1k": lambda n: forward(n, 60),
    "udp-1m": lambda n: forward(n, 60, PORTS),
    "imix": imix,
    "syn": syn,
    "vxlan": vxlan,
}


def write_pcap(scenario, count, path):
    """A capture in the classic format, link type Ethernet."""
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for n in range(count):
            frame = SCENARIOS[scenario](n)
            file.write(struct.pack("<IIII", n // 1000000, n % 1000000, len(frame), len(frame)) + frame)


def main(arguments):
    """Runs one of the two commands."""
    match arguments:
        case ["hex", scenario, first, count] if scenario in SCENARIOS:
            for n in range(int(first), int(first) + int(count)):
                print(SCENARIOS[scenario](n).hex())
        case ["pcap", scenario, count, path] if scenario in SCENARIOS:
            write_pcap(scenario, int(count), path)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
