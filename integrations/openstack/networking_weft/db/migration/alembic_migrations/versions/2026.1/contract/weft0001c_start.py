"""Where the branch of contracting changes begins.

Revision ID: weft0001c
Revises: weft0000
"""

revision = "weft0001c"
down_revision = "weft0000"
branch_labels = ("contract",)


def upgrade() -> None:
    pass
