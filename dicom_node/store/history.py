"""Scored studies with what scanned them, as the drift watch and the admission compare them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, func, select

from dicom_node import clock
from dicom_node.store.reference_table import ADMITTED
from dicom_node.store.tables import batch, member, score, series


@dataclass(frozen=True, slots=True)
class ScoredStudy:
    """The score of a series' current revision, and where the series came from."""

    #: as `dicom_node.scanner` names them; empty where the series did not say
    scanner: str
    software: str
    #: digest of the patient's identity
    patient_key: str
    #: is in the reference batch now
    admitted: bool
    scored: datetime
    subject_score: float
    #: 0..100, among `n_reference` subjects
    percentile: float
    n_reference: int
    #: median of the distances to the batch, not calibrated; None of scores of an older version
    raw_distance: float | None


def scored_studies(
    db: Connection, protocol: str, limit: int, fingerprint: str | None = None
) -> list[ScoredStudy]:
    """Return at most `limit` studies of a protocol, the newest score first.

    Only those of one fingerprint, by default the newest score's: scores of other settings cannot be
    compared. What is not known of the scanner is empty.
    """
    newest = (
        select(score.c.fingerprint)
        .where(score.c.protocol == protocol)
        .order_by(score.c.scored.desc(), score.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    names = ("scanner", "software", "patient_key", "state")
    rows = db.execute(
        select(score, *(func.coalesce(member.c[name], "").label(name) for name in names))
        .join(batch, batch.c.version == score.c.batch_version)
        .join(
            series,
            and_(
                series.c.series_instance_uid == score.c.series_instance_uid,
                series.c.revision == score.c.revision,
            ),
        )
        .outerjoin(
            member,
            and_(
                member.c.protocol == score.c.protocol,
                member.c.fingerprint == batch.c.fingerprint,
                member.c.subject == score.c.subject,
            ),
        )
        .where(score.c.protocol == protocol, score.c.fingerprint == (fingerprint or newest))
        .order_by(score.c.scored.desc(), score.c.id.desc())
        .limit(limit)
    )
    return [
        ScoredStudy(
            row.scanner,
            row.software,
            row.patient_key,
            row.state == ADMITTED,
            clock.parse(row.scored),
            row.subject_score,
            row.percentile,
            row.n_reference,
            row.raw_distance,
        )
        for row in rows
    ]
