"""Scored studies of scanners, as numbers and in a ledger."""

from dataclasses import replace
from datetime import timedelta

import numpy as np

from dicom_node.drift import Observed
from dicom_node.jobs import JobState, Stage
from dicom_node.store import job_table, reference_table, result_table
from dicom_node.store.history import ScoredStudy
from dicom_node.store.reference_table import ADMITTED, EXCLUDED, Member
from tests.make import ledgers
from tests.make.ledgers import NOON

SKYRA, PRISMA = "SIEMENS Skyra #0a1b2c3d4e5f", "SIEMENS Prisma #f0e1d2c3b4a5"
OLD, NEW = "syngo MR E11", "syngo MR XA30"
N_REFERENCE = 40


def draw(
    rng, n, *, shift=0.0, raw_shift=0.0, scanner=SKYRA, software=OLD, n_reference=N_REFERENCE
) -> list[ScoredStudy]:
    """Studies in the order in which they came, one a day; shifts in standard deviations.

    Each is scored against a reference of its own: its percentile is uniform without a shift. Who is
    above percentile 95 is not admitted.
    """
    found = []
    for _ in range(n):
        latent = rng.normal(shift)
        percentile = 100.0 * np.mean(rng.normal(size=n_reference) < latent)
        found.append(
            ScoredStudy(
                scanner=scanner,
                software=software,
                patient_key="",
                admitted=bool(percentile <= 95.0),
                scored=NOON,
                subject_score=float(4.0 + latent),
                percentile=float(percentile),
                n_reference=n_reference,
                raw_distance=float(0.30 + 0.02 * rng.normal(raw_shift)),
            )
        )
    return found


def rolled(rng, n, least=15, most=60) -> list[ScoredStudy]:
    """Studies without drift, each scored against the batch that the earlier ones made by rule."""
    batch, found = list(rng.normal(size=least)), []
    for _ in range(n):
        latent = rng.normal()
        percentile = 100.0 * float(np.mean(np.array(batch) < latent))
        (usual,) = draw(rng, 1)
        admitted = percentile <= 95.0
        changes = {"percentile": percentile, "n_reference": len(batch), "admitted": admitted}
        found.append(replace(usual, subject_score=float(4.0 + latent), **changes))
        batch = [*batch, latent][-most:] if admitted else batch
    return found


def in_time(*parts) -> list[ScoredStudy]:
    """The parts after one another, a day between two studies and each of another patient.

    Newest first, as the ledger gives them.
    """
    studies = [study for part in parts for study in part]
    dated = [
        replace(study, scored=NOON + timedelta(days=day), patient_key=f"patient-{day}")
        for day, study in enumerate(studies)
    ]
    return dated[::-1]


def observed(*parts, **changes) -> Observed:
    """One protocol whose studies are these parts, the oldest first."""
    values = {"protocol": ledgers.protocol(max_reference=60), "studies": in_time(*parts)}
    return Observed(**(values | changes))


def keep(database, studies, protocol="t1", start=1) -> None:
    """Write studies (newest first) into a ledger, as a node that scored and reported them."""
    for number, study in enumerate(studies[::-1], start):
        uid = f"1.2.{number}"
        ledgers.complete_series(database, uid, study.scored)
        entry = Member(
            f"subject-{uid}",
            uid,
            study.patient_key,
            ADMITTED if study.admitted else EXCLUDED,
            "by its score",
            study.scored.isoformat(),
            study.scanner,
            study.software,
        )
        with database.begin() as db:
            reference_table.add(db, protocol, "f", entry)
            reference_table.freeze(db, f"{protocol}-b", protocol, "f", ["a", "b"], NOON)
            result_table.record_score(
                db,
                ledgers.score(
                    uid,
                    protocol=protocol,
                    batch_version=f"{protocol}-b",
                    **{
                        name: getattr(study, name)
                        for name in (
                            *("scored", "subject_score", "percentile"),
                            *("n_reference", "raw_distance"),
                        )
                    },
                ),
            )
        end(database, uid, Stage.REPORT, JobState.DONE, protocol=protocol, at=study.scored)


def end(database, uid, stage, state, *, protocol=None, at=NOON, **values) -> None:
    """Queue a job and run it to its end, as a worker does."""
    number = ledgers.enqueue(database, uid, stage, protocol=protocol, at=at)
    with database.begin() as db:
        assert job_table.move(db, number, JobState.RUNNING, at)
        assert job_table.move(db, number, state, at, **values)
