"""Where each slice lies, and how many its sender says there are: so that a gap is seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("instance", sa.Column("along_mm", sa.Float(), nullable=True))
    op.add_column("instance", sa.Column("plane", sa.String(), nullable=True))
    op.add_column("instance", sa.Column("n_expected", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Undo this step."""
    with op.batch_alter_table("instance", schema=None) as batch_op:
        batch_op.drop_column("n_expected")
        batch_op.drop_column("plane")
        batch_op.drop_column("along_mm")
