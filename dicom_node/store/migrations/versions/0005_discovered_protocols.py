"""Protocols that the node discovered by itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "discovered",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("signature", sa.JSON(), nullable=False),
        sa.Column("founded", sa.String(), nullable=False),
        sa.Column("forgotten", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_discovered")),
    )


def downgrade() -> None:
    """Undo this step."""
    op.drop_table("discovered")
