"""Which subnets of a network are one subnet of weft's.

A subnet of weft's has at most one prefix of each family, and a port has addresses of one subnet. So a network's first IPv4 subnet goes with its first IPv6
subnet, the second with the second, in the order in which they were made; what was put together stays together.
"""

from neutron_lib.db import api as db_api

from networking_weft.db.models import SegmentSubnet


def join(context: object, network: str, subnet: str, ip_version: int) -> str:
    """Finds a new subnet's place, in the transaction that is open; returns the id of weft's subnet."""
    known = context.session.query(SegmentSubnet).filter_by(network=network).all()
    taken = {row.segment for row in known if row.ip_version == ip_version}
    open_ones = [row.segment for row in known if row.segment not in taken]
    segment = min(open_ones) if open_ones else subnet
    row = SegmentSubnet(subnet=subnet, network=network, ip_version=ip_version, segment=segment)
    context.session.add(row)
    return segment


def leave(context: object, subnet: str) -> str | None:
    """Forgets a subnet, in the transaction that is open; returns the id of weft's subnet that it was in."""
    row = context.session.get(SegmentSubnet, subnet)
    if row is None:
        return None
    segment = row.segment
    context.session.delete(row)
    return segment


def segment_of(context: object, subnet: str) -> str | None:
    """The id of weft's subnet that a subnet is in."""
    with db_api.CONTEXT_READER.using(context):
        row = context.session.get(SegmentSubnet, subnet)
        return row.segment if row is not None else None


def segments_of_network(context: object, network: str) -> dict[str, list[str]]:
    """Weft's subnets of a network, each with the network's that are in it."""
    segments: dict[str, list[str]] = {}
    with db_api.CONTEXT_READER.using(context):
        for row in context.session.query(SegmentSubnet).filter_by(network=network):
            segments.setdefault(row.segment, []).append(row.subnet)
    return segments


def network_of(context: object, segment: str) -> tuple[str, list[str]] | None:
    """The network that weft's subnet is of, and the network's subnets that are in it; none if there are none any more."""
    with db_api.CONTEXT_READER.using(context):
        rows = context.session.query(SegmentSubnet).filter_by(segment=segment).all()
        return (rows[0].network, [row.subnet for row in rows]) if rows else None
