"""What destinations were asked to commit to, what they said, and what was found again."""

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


def downgrade() -> None:
    """Undo this step."""
    with op.batch_alter_table("delivery", schema=None) as batch_op:
        for name, _kind in _COLUMNS:
            batch_op.drop_column(name)
    op.drop_table("commitment")
