"""TRex, stateless: the scenarios of ../packets.py.

    trex> start -f bench/profiles/trex/weft.py -p 0 -m 10mpps -t scenario=udp-1k

`imix` makes three streams, whose rates keep their proportion under any `-m`.
"""
import os
import sys

from trex.stl.api import STLPktBuilder, STLScVmRaw, STLStream, STLTXCont, STLVmFlowVar, STLVmWrFlowVar

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import packets  # noqa: E402

# Offsets into a frame without a VLAN tag and without IP options.
SOURCE_PORT, PORT = 34, 36
SEQUENCE_LOW, URGENT = 40, 52
INNER_PORT = 14 + 20 + 8 + 8 + PORT


def counter(name, bounds, offset, down=False):
    """A number of two bytes that counts through the bounds and begins anew."""
    low, high = bounds
    first, way = (high, "dec") if down else (low, "inc")
    return [
        STLVmFlowVar(name=name, init_value=first, min_value=low, max_value=high, size=2, step=1, op=way),
        STLVmWrFlowVar(fv_name=name, pkt_offset=offset),
    ]


def mirrored(bounds):
    """What 0xffff less a number goes through."""
    return 0xFFFF - bounds[1], 0xFFFF - bounds[0]


def stream(frame, changes, rate=1000):
    """One stream of a frame whose fields change."""
    return STLStream(packet=STLPktBuilder(pkt_buffer=frame, vm=STLScVmRaw(changes)), mode=STLTXCont(pps=rate))


def streams(scenario):
    """The streams of a scenario."""
    sources = counter("source", packets.SOURCE_PORTS, SOURCE_PORT)
    if scenario == "udp-1k":
        return [stream(packets.forward(0, 60), sources)]
    if scenario == "udp-1m":
        return [stream(packets.forward(0, 60, packets.PORTS), sources + counter("port", packets.PORTS, PORT))]
    if scenario == "imix":
        return [stream(packets.forward(0, size), sources, 1000 * weight) for size, weight in packets.IMIX]
    if scenario == "syn":
        changes = counter("source", packets.SYN_SOURCE_PORTS, SOURCE_PORT)
        changes += counter("urgent", mirrored(packets.SYN_SOURCE_PORTS), URGENT, down=True)
        changes += counter("port", packets.SYN_PORTS, PORT)
        changes += counter("sequence", mirrored(packets.SYN_PORTS), SEQUENCE_LOW, down=True)
        return [stream(packets.syn(0), changes)]
    if scenario == "vxlan":
        changes = counter("tunnel", packets.TUNNEL_PORTS, SOURCE_PORT)
        return [stream(packets.vxlan(0), changes + counter("inner", packets.SOURCE_PORTS, INNER_PORT))]
    raise ValueError(f"{scenario} is none of {', '.join(packets.SCENARIOS)}")


class Weft:
    """What TRex asks for streams."""

    def get_streams(self, direction=0, scenario="udp-1k", **_):
        """The streams of the scenario; the other direction sends nothing."""
        return streams(scenario) if direction == 0 else []


def register():
    """What TRex looks for in a profile."""
    return Weft()
