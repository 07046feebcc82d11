"""Decisions about the reference batch, each with its reason, that can be undone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    _admission()
    with op.batch_alter_table("member", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch_op.add_column(sa.Column("scanner", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("percentile", sa.Float(), nullable=True))
        batch_op.add_column(
            sa.Column("decided_by", sa.String(), nullable=False, server_default="rule")
        )
        batch_op.add_column(sa.Column("decided_in", sa.Integer(), nullable=True))
        batch_op.create_foreign_key(
            batch_op.f("fk_member_decided_in"), "admission", ["decided_in"], ["id"]
        )


def _admission() -> None:
    op.create_table(
        "admission",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("verb", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("undoes", sa.Integer(), nullable=True),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["undoes"], ["admission.id"], name=op.f("fk_admission_undoes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_admission")),
    )
    with op.batch_alter_table("admission", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_admission_protocol_fingerprint_id"),
            ["protocol", "fingerprint", "id"],
            unique=False,
        )
    # after the last change of the table: a copy of it would lose them
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER admission_no_{change.lower()} BEFORE {change} ON admission "
            "BEGIN SELECT RAISE(ABORT, 'the table admission is append-only'); END"
        )


def downgrade() -> None:
    """Undo this step."""
    with op.batch_alter_table("member", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_member_decided_in"), type_="foreignkey")
        for name in ("decided_in", "decided_by", "percentile", "scanner", "pinned"):
            batch_op.drop_column(name)
    for change in ("update", "delete"):
        op.execute(f"DROP TRIGGER admission_no_{change}")
    with op.batch_alter_table("admission", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_admission_protocol_fingerprint_id"))
    op.drop_table("admission")
