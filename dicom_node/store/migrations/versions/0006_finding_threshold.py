"""The threshold that a score's findings were made with: the batch may have raised it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("score", sa.Column("finding_threshold", sa.Float(), nullable=True))


def downgrade() -> None:
    """Undo this step."""
    with op.batch_alter_table("score", schema=None) as batch_op:
        batch_op.drop_column("finding_threshold")
