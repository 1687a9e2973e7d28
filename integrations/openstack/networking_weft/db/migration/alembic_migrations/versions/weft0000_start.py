"""Where the branches begin.

Revision ID: weft0000
Revises: None
"""

revision = "weft0000"
down_revision = None


def upgrade() -> None:
    pass
