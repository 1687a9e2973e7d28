#!/usr/bin/env python3
"""Prints what TRex would send, without TRex: the first packets of each stream of weft.py in hexadecimal, with the stream's rate before them.

    expand.py SCENARIO COUNT

Stands in for the few classes of TRex that the profile uses, and carries out its flow variables as TRex's manual describes them.
"""
import os
import sys
import types


class Recorded:
    """Keeps what it is given by name."""

    def __init__(self, *args, **named):
        self.args = args
        self.__dict__.update(named)


NAMES = ["STLPktBuilder", "STLScVmRaw", "STLStream", "STLTXCont", "STLVmFlowVar", "STLVmWrFlowVar"]
CLASSES = {name: type(name, (Recorded,), {}) for name in NAMES}


def stand_in():
    """Makes `from trex.stl.api import …` work."""
    for name in ("trex", "trex.stl", "trex.stl.api"):
        sys.modules[name] = types.ModuleType(name)
    for name, kind in CLASSES.items():
        setattr(sys.modules["trex.stl.api"], name, kind)


def expand(stream, count):
    """The first packets of a stream."""
    variables = {}
    for _ in range(count):
        frame = bytearray(stream.packet.pkt_buffer)
        for command in stream.packet.vm.args[0]:
            if isinstance(command, CLASSES["STLVmFlowVar"]):
                value, span = command.init_value, command.max_value - command.min_value + 1
                if command.name in variables:
                    step = command.step if command.op == "inc" else -command.step
                    value = command.min_value + (variables[command.name][0] + step - command.min_value) % span
                variables[command.name] = (value, command.size)
            else:
                value, size = variables[command.fv_name]
                frame[command.pkt_offset : command.pkt_offset + size] = value.to_bytes(size, "big")
        yield frame.hex()


def main(scenario, count):
    """Prints every stream."""
    stand_in()
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    sys.dont_write_bytecode = True
    profile = __import__("weft").register()
    for stream in profile.get_streams(direction=0, scenario=scenario):
        for frame in expand(stream, int(count)):
            print(stream.mode.pps, frame)


if __name__ == "__main__":
    main(*sys.argv[1:])
