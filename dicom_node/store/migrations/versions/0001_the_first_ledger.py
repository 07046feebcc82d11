"""The first ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    _association()
    _batch()
    _job()
    _member()
    _refusal()
    _series()
    _carried()
    _instance()
    _score()
    _finding()
    _result()
    _delivery()


def _association() -> None:
    op.create_table(
        "association",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("calling_ae_title", sa.String(), nullable=False),
        sa.Column("peer_host", sa.String(), nullable=False),
        sa.Column("opened", sa.String(), nullable=False),
        sa.Column("closed", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_association")),
    )
    with op.batch_alter_table("association", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_association_closed"), ["closed"], unique=False)


def _batch() -> None:
    op.create_table(
        "batch",
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("subjects", sa.JSON(), nullable=False),
        sa.Column("frozen", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_batch")),
    )


def _job() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.String(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("lease_until", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("updated", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint(
            "series_instance_uid",
            "revision",
            "stage",
            name=op.f("uq_job_series_instance_uid_revision_stage"),
        ),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_job_state_priority_id"), ["state", "priority", "id"], unique=False
        )


def _member() -> None:
    op.create_table(
        "member",
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("patient_key", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("added", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("protocol", "fingerprint", "subject", name=op.f("pk_member")),
    )


def _refusal() -> None:
    op.create_table(
        "refusal",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("calling_ae_title", sa.String(), nullable=False),
        sa.Column("peer_host", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("happened", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refusal")),
    )


def _series() -> None:
    op.create_table(
        "series",
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=True),
        sa.Column("n_instances", sa.Integer(), nullable=False),
        sa.Column("first_received", sa.String(), nullable=False),
        sa.Column("last_received", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("series_instance_uid", name=op.f("pk_series")),
    )
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_series_state"), ["state"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_series_study_instance_uid"), ["study_instance_uid"], unique=False
        )


def _carried() -> None:
    op.create_table(
        "carried",
        sa.Column("association_id", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["association_id"], ["association.id"], name=op.f("fk_carried_association_id")
        ),
        sa.PrimaryKeyConstraint("association_id", "series_instance_uid", name=op.f("pk_carried")),
    )
    with op.batch_alter_table("carried", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_carried_series_instance_uid"), ["series_instance_uid"], unique=False
        )


def _instance() -> None:
    op.create_table(
        "instance",
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(), nullable=False),
        sa.Column("file_name", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("calling_ae_title", sa.String(), nullable=False),
        sa.Column("received", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["series_instance_uid"],
            ["series.series_instance_uid"],
            name=op.f("fk_instance_series_instance_uid"),
        ),
        sa.PrimaryKeyConstraint("sop_instance_uid", name=op.f("pk_instance")),
    )
    with op.batch_alter_table("instance", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_instance_series_instance_uid"), ["series_instance_uid"], unique=False
        )


def _score() -> None:
    op.create_table(
        "score",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("batch_version", sa.String(), nullable=False),
        sa.Column("n_reference", sa.Integer(), nullable=False),
        sa.Column("subject_score", sa.Float(), nullable=False),
        sa.Column("percentile", sa.Float(), nullable=False),
        sa.Column("scored", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_version"], ["batch.version"], name=op.f("fk_score_batch_version")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_score")),
        sa.UniqueConstraint(
            "series_instance_uid", "revision", name=op.f("uq_score_series_instance_uid_revision")
        ),
    )


def _finding() -> None:
    op.create_table(
        "finding",
        sa.Column("score_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("volume_ml", sa.Float(), nullable=False),
        sa.Column("max_score", sa.Float(), nullable=False),
        sa.Column("mean_score", sa.Float(), nullable=False),
        sa.Column("diameter_mm", sa.Float(), nullable=False),
        sa.Column("centroid_mm", sa.JSON(), nullable=False),
        sa.Column("peak_mm", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["score_id"], ["score.id"], name=op.f("fk_finding_score_id")),
        sa.PrimaryKeyConstraint("score_id", "rank", name=op.f("pk_finding")),
    )


def _result() -> None:
    op.create_table(
        "result",
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("score_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("file_name", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["score_id"], ["score.id"], name=op.f("fk_result_score_id")),
        sa.PrimaryKeyConstraint("sop_instance_uid", name=op.f("pk_result")),
    )
    with op.batch_alter_table("result", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_result_score_id"), ["score_id"], unique=False)


def _delivery() -> None:
    op.create_table(
        "delivery",
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("not_before", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("updated", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sop_instance_uid"],
            ["result.sop_instance_uid"],
            name=op.f("fk_delivery_sop_instance_uid"),
        ),
        sa.PrimaryKeyConstraint("sop_instance_uid", "destination", name=op.f("pk_delivery")),
    )
    with op.batch_alter_table("delivery", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_delivery_destination_state_not_before"),
            ["destination", "state", "not_before"],
            unique=False,
        )


def downgrade() -> None:
    """Undo this step."""
    with op.batch_alter_table("delivery", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_delivery_destination_state_not_before"))

    op.drop_table("delivery")
    with op.batch_alter_table("result", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_result_score_id"))

    op.drop_table("result")
    op.drop_table("finding")
    op.drop_table("score")
    with op.batch_alter_table("instance", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_instance_series_instance_uid"))

    op.drop_table("instance")
    with op.batch_alter_table("carried", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_carried_series_instance_uid"))

    op.drop_table("carried")
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_series_study_instance_uid"))
        batch_op.drop_index(batch_op.f("ix_series_state"))

    op.drop_table("series")
    op.drop_table("refusal")
    op.drop_table("member")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_job_state_priority_id"))

    op.drop_table("job")
    op.drop_table("batch")
    with op.batch_alter_table("association", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_association_closed"))

    op.drop_table("association")
