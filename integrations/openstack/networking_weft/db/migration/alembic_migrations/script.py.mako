"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision}
"""
% if branch_labels:

branch_labels = ${repr(branch_labels)}
% endif
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
