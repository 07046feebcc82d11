"""The statement behind the node's worklist: what is known of each series, in one row."""

from __future__ import annotations

from sqlalchemy import Select, Subquery, and_, func, select

from dicom_node.store.tables import finding, job, score, series


def newest_jobs() -> Subquery:
    """Return (``series_instance_uid``, ``job_id``) of the last job of each series that has one."""
    # jobs are numbered as they are queued: the highest number is the furthest step
    return (
        select(job.c.series_instance_uid, func.max(job.c.id).label("job_id"))
        .group_by(job.c.series_instance_uid)
        .subquery()
    )


def worklist_query() -> Select:  # type: ignore[type-arg]
    """Join each series to its current score and its last job.

    Returns
    -------
    Select
        One row per series: all of ``series``; ``score_id``, ``subject_score``, ``percentile``,
        ``n_reference`` and ``batch_version`` of the current revision's score, null without one;
        ``n_findings``; ``stage``, ``job_state`` and ``reason`` of the last job.
    """
    newest = newest_jobs()
    n_findings = (
        select(func.count())
        .select_from(finding)
        .where(finding.c.score_id == score.c.id)
        .scalar_subquery()
    )
    return (
        select(
            series,
            score.c.id.label("score_id"),
            score.c.subject_score,
            score.c.percentile,
            score.c.n_reference,
            score.c.batch_version,
            n_findings.label("n_findings"),
            job.c.stage,
            job.c.state.label("job_state"),
            job.c.reason,
        )
        .outerjoin(
            score,
            and_(
                score.c.series_instance_uid == series.c.series_instance_uid,
                score.c.revision == series.c.revision,
            ),
        )
        .outerjoin(newest, newest.c.series_instance_uid == series.c.series_instance_uid)
        .outerjoin(job, job.c.id == newest.c.job_id)
    )
