"""The statement behind the node's worklist: what is known of each series or part, in one row."""

from __future__ import annotations

from sqlalchemy import ColumnElement, FromClause, Select, Subquery, and_, func, or_, select

from dicom_node.store.tables import finding, job, part, score, series


def volumes() -> FromClause:
    """Join each series to the parts of its current revision; without any it is one row."""
    return series.outerjoin(
        part,
        and_(
            part.c.series_instance_uid == series.c.series_instance_uid,
            part.c.revision == series.c.revision,
        ),
    )


def key() -> ColumnElement[str]:
    """Return the part's key in a row of `volumes`; empty of a series that is one volume."""
    return func.coalesce(part.c.key, "")


def newest_jobs() -> Subquery:
    """Return (``series_instance_uid``, ``part``, ``job_id``) of the last job of each that has one.

    Of a part the last one of the series' current revision: a part may be known before its job is.
    """
    # jobs are numbered as they are queued: the highest number is the furthest step
    return (
        select(job.c.series_instance_uid, job.c.part, func.max(job.c.id).label("job_id"))
        .join(series, series.c.series_instance_uid == job.c.series_instance_uid, isouter=True)
        .where(or_(job.c.part == "", job.c.revision == series.c.revision))
        .group_by(job.c.series_instance_uid, job.c.part)
        .subquery()
    )


def of_volume(newest: Subquery) -> ColumnElement[bool]:
    """Tell that a row of `newest_jobs` is of a row of `volumes`."""
    return and_(
        newest.c.series_instance_uid == series.c.series_instance_uid, newest.c.part == key()
    )


def worklist_query() -> Select:  # type: ignore[type-arg]
    """Join each series, or each of its parts, to its current score and its last job.

    Returns
    -------
    Select
        One row per series, or per part of one of several volumes: all of ``series``, but for a
        part with its own ``protocol``; ``part`` (its key) and ``part_name``, empty of a series that
        is one volume; ``score_id``, ``subject_score``, ``percentile``, ``n_reference`` and
        ``batch_version`` of the current revision's score, null without one; ``n_findings``;
        ``stage``, ``job_state`` and ``reason`` of the last job.
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
            *(column for column in series.c if column.name != "protocol"),
            func.coalesce(part.c.protocol, series.c.protocol).label("protocol"),
            key().label("part"),
            func.coalesce(part.c.name, "").label("part_name"),
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
        .select_from(volumes())
        .outerjoin(
            score,
            and_(
                score.c.series_instance_uid == series.c.series_instance_uid,
                score.c.revision == series.c.revision,
                score.c.part == key(),
            ),
        )
        .outerjoin(newest, of_volume(newest))
        .outerjoin(job, job.c.id == newest.c.job_id)
    )
