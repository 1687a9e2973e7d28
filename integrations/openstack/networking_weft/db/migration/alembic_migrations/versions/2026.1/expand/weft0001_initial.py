"""The first tables.

Revision ID: weft0001
Revises: weft0000
"""

import sqlalchemy as sa
from alembic import op

revision = "weft0001"
down_revision = "weft0000"
branch_labels = ("expand",)


def upgrade() -> None:
    op.create_table(
        "weft_changes",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("object", sa.String(80), nullable=False),
        sa.Column("due", sa.Double, nullable=False, index=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Index("ix_weft_changes_object", "kind", "object"),
    )
    op.create_table(
        "weft_segment_subnets",
        sa.Column("subnet", sa.String(36), primary_key=True),
        sa.Column("network", sa.String(36), nullable=False, index=True),
        sa.Column("ip_version", sa.Integer, nullable=False),
        sa.Column("segment", sa.String(36), nullable=False, index=True),
    )
