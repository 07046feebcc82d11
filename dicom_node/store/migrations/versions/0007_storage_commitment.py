"""What destinations were asked to commit to, what senders ask of us, and what was found again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("transaction_uid", sa.String()),
    ("failure", sa.Integer()),
    ("committed", sa.String()),
    ("found", sa.String()),
)


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "commitment",
        sa.Column("transaction_uid", sa.String(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("asked", sa.String(), nullable=False),
        sa.Column("answered", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("transaction_uid", name=op.f("pk_commitment")),
    )
    # columns that may be null are added in place: no table is copied
    for name, kind in _COLUMNS:
        op.add_column("delivery", sa.Column(name, kind, nullable=True))
    op.add_column("series", sa.Column("asked", sa.String(), nullable=True))
    _owed()


def _owed() -> None:
    op.create_table(
        "owed",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("calling_ae_title", sa.String(), nullable=False),
        sa.Column("transaction_uid", sa.String(), nullable=False),
        sa.Column("peer_host", sa.String(), nullable=False),
        sa.Column("instances", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("asked", sa.String(), nullable=False),
        sa.Column("not_before", sa.String(), nullable=False),
        sa.Column("updated", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_owed")),
        sa.UniqueConstraint(
            "calling_ae_title",
            "transaction_uid",
            name=op.f("uq_owed_calling_ae_title_transaction_uid"),
        ),
    )
    op.create_index(op.f("ix_owed_state_not_before"), "owed", ["state", "not_before"])


def downgrade() -> None:
    """Undo this step."""
    op.drop_index(op.f("ix_owed_state_not_before"), "owed")
    op.drop_table("owed")
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.drop_column("asked")
    with op.batch_alter_table("delivery", schema=None) as batch_op:
        for name, _kind in _COLUMNS:
            batch_op.drop_column(name)
    op.drop_table("commitment")
