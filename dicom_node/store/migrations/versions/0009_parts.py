"""Series of several volumes: each part has jobs and a score of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

#: table -> the columns of its unique key, before and after
_KEYS = {
    "job": (
        ["series_instance_uid", "revision", "stage"],
        ["series_instance_uid", "revision", "part", "stage"],
    ),
    "score": (
        ["series_instance_uid", "revision"],
        ["series_instance_uid", "revision", "part"],
    ),
}


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "part",
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("instances", sa.JSON(), nullable=False),
        sa.Column("frames", sa.JSON(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("series_instance_uid", "revision", "key", name=op.f("pk_part")),
    )
    # what is there is of series that are one volume
    op.add_column("member", _part())
    for table, (before, after) in _KEYS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(_part())
            batch_op.drop_constraint(_name(table, before), type_="unique")
            batch_op.create_unique_constraint(_name(table, after), after)


def downgrade() -> None:
    """Undo this step; it fails where a series has several parts, which nothing before knows."""
    for table, (before, after) in _KEYS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_constraint(_name(table, after), type_="unique")
            batch_op.create_unique_constraint(_name(table, before), before)
            batch_op.drop_column("part")
    with op.batch_alter_table("member", schema=None) as batch_op:
        batch_op.drop_column("part")
    op.drop_table("part")


def _part() -> sa.Column[str]:
    return sa.Column("part", sa.String(), nullable=False, server_default="")


def _name(table: str, columns: list[str]) -> str:
    return str(op.f(f"uq_{table}_{'_'.join(columns)}"))
