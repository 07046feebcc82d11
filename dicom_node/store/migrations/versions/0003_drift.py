"""What the drift watch compares and says, and the class of the fault a job ended with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    _warning()
    # columns that may be null, or have a default, are added in place: no table is copied
    op.add_column("job", sa.Column("fault", sa.String(), nullable=True))
    op.add_column("member", sa.Column("software", sa.String(), nullable=False, server_default=""))
    op.add_column("score", sa.Column("raw_distance", sa.Float(), nullable=True))
    op.create_index(op.f("ix_score_protocol_scored"), "score", ["protocol", "scored"])


def _warning() -> None:
    op.create_table(
        "warning",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("scanner", sa.String(), nullable=False),
        sa.Column("software", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("first_seen", sa.String(), nullable=False),
        sa.Column("last_seen", sa.String(), nullable=False),
        sa.Column("n_looks", sa.Integer(), nullable=False),
        sa.Column("closed", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_warning")),
    )
    op.create_index(
        "ix_warning_open",
        "warning",
        ["protocol", "kind", "scanner", "software"],
        unique=True,
        sqlite_where=sa.text("closed IS NULL"),
    )


def downgrade() -> None:
    """Undo this step."""
    op.drop_index(op.f("ix_score_protocol_scored"), "score")
    for table, column in (("score", "raw_distance"), ("member", "software"), ("job", "fault")):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column(column)
    op.drop_index("ix_warning_open", "warning")
    op.drop_table("warning")
