"""Studies that were scored in a span of time, with their findings and objects, in one row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select

from dicom_node import clock
from dicom_node.store.tables import finding, part, result, score, series


@dataclass(frozen=True, slots=True)
class StudyRow:
    """The score of a series' current revision; it names no patient."""

    protocol: str
    study_instance_uid: str
    series_instance_uid: str
    #: moment (ISO 8601)
    scored: str
    subject_score: float
    #: 0..100, among `n_reference` subjects
    percentile: float
    n_reference: int
    n_findings: int
    #: of all findings together; peak of the highest, None without findings
    findings_ml: float
    peak: float | None
    #: objects that were made, per kind: "SEG", "SC"
    n_segmentations: int
    n_captures: int
    #: which volume of the series, in words; empty: the only one
    part: str


def scored_between(
    db: Connection, protocols: Sequence[str], start: datetime, end: datetime
) -> list[StudyRow]:
    """Return the studies of these protocols scored from `start` to before `end`, oldest first."""
    found = (
        select(
            finding.c.score_id,
            func.count().label("n"),
            func.sum(finding.c.volume_ml).label("ml"),
            func.max(finding.c.max_score).label("peak"),
        )
        .group_by(finding.c.score_id)
        .subquery()
    )
    columns: list[ColumnElement[Any]] = [
        score.c.protocol,
        series.c.study_instance_uid,
        score.c.series_instance_uid,
        score.c.scored,
        score.c.subject_score,
        score.c.percentile,
        score.c.n_reference,
        func.coalesce(found.c.n, 0),
        func.coalesce(found.c.ml, 0.0),
        found.c.peak,
        _n_objects("SEG"),
        _n_objects("SC"),
        func.coalesce(part.c.name, ""),
    ]
    rows = db.execute(
        select(*columns)
        .join(
            series,
            and_(
                series.c.series_instance_uid == score.c.series_instance_uid,
                series.c.revision == score.c.revision,
            ),
        )
        .outerjoin(
            part,
            and_(
                part.c.series_instance_uid == score.c.series_instance_uid,
                part.c.revision == score.c.revision,
                part.c.key == score.c.part,
            ),
        )
        .outerjoin(found, found.c.score_id == score.c.id)
        .where(
            score.c.protocol.in_(protocols),
            score.c.scored >= clock.stamp(start),
            score.c.scored < clock.stamp(end),
        )
        .order_by(score.c.scored, score.c.id)
    )
    return [StudyRow(*row) for row in rows]


def _n_objects(kind: str) -> ColumnElement[int]:
    return (
        select(func.count())
        .select_from(result)
        .where(result.c.score_id == score.c.id, result.c.kind == kind)
        .scalar_subquery()
    )
