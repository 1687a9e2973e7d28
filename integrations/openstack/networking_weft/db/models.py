"""What the driver keeps in Neutron's database."""

import sqlalchemy as sa
from neutron_lib.db import model_base

# SQLite counts up only what it calls INTEGER.
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


class Change(model_base.BASEV2):
    """An object of Neutron changed, and the controller may not have got it yet. Written in the transaction of the change."""

    __tablename__ = "weft_changes"
    __table_args__ = (sa.Index("ix_weft_changes_object", "kind", "object"),)

    number = sa.Column(NUMBER, primary_key=True, autoincrement=True)
    # As in `units.KINDS`.
    kind = sa.Column(sa.String(32), nullable=False)
    object = sa.Column(sa.String(80), nullable=False)
    # Seconds since 1970, by this server's clock: not to be tried before.
    due = sa.Column(sa.Double, nullable=False, index=True)
    attempts = sa.Column(sa.Integer, nullable=False, default=0)


class SegmentSubnet(model_base.BASEV2):
    """Which subnets of a network are one subnet of weft's: at most one of each family, since a port has addresses of one subnet there."""

    __tablename__ = "weft_segment_subnets"

    subnet = sa.Column(sa.String(36), primary_key=True)
    network = sa.Column(sa.String(36), nullable=False, index=True)
    ip_version = sa.Column(sa.Integer, nullable=False)
    # The id of weft's subnet: that of the first of the network's subnets that it was made for.
    segment = sa.Column(sa.String(36), nullable=False, index=True)
