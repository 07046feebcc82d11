"""Which space a protocol uses, and what became of the members that moved into it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "space",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("settings", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("n_members", sa.Integer(), nullable=False),
        sa.Column("asked", sa.String(), nullable=False),
        sa.Column("since", sa.String(), nullable=False, server_default=""),
        sa.Column("digest", sa.String(), nullable=False, server_default=""),
        sa.Column("fingerprint", sa.String(), nullable=False, server_default=""),
        sa.Column("template", sa.String(), nullable=False, server_default=""),
        sa.Column("subjects", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_space")),
    )
    for name, states in (("serving", "'serving'"), ("under_way", "'wanted', 'building'")):
        op.create_index(
            f"ix_space_{name}",
            "space",
            ["protocol", "settings"],
            unique=True,
            sqlite_where=sa.text(f"state IN ({states})"),
        )
    op.create_table(
        "moved",
        sa.Column("space_id", sa.Integer(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["space_id"], ["space.id"], name=op.f("fk_moved_space_id")),
        sa.PrimaryKeyConstraint("space_id", "subject", name=op.f("pk_moved")),
    )


def downgrade() -> None:
    """Undo this step."""
    op.drop_table("moved")
    for name in ("serving", "under_way"):
        op.drop_index(f"ix_space_{name}", "space")
    op.drop_table("space")
