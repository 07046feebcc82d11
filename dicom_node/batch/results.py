"""What a run in batch mode has found, and the tables of it: ``scores.csv`` and ``scores.json``.

Both say what made the scores (method, fingerprint, version) and that they are for research: a table
travels without the program that wrote it. Points are LPS millimetres, as everywhere in the node.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dicom_node import __version__, clock, durable
from dicom_node.batch.recipe import Recipe
from dicom_node.evaluation import Report
from dicom_node.findings import Finding, ScoreSummary
from dicom_node.identity import RESEARCH_ONLY


@dataclass(frozen=True, slots=True)
class Scored:
    """One scored scan."""

    name: str
    #: the NIfTI file, or the folder of the series
    source: str
    score: float
    #: rank of the score among the other subjects' own, 0..100
    percentile: float
    n_reference: int
    #: from which a region of the map is a finding
    threshold: float
    #: highest first
    findings: tuple[Finding, ...]
    #: other scans of the same patient, which were not compared with this one
    same_patient: tuple[str, ...]
    #: name of the batch, by its content
    batch_version: str
    scored_at: datetime
    #: 0 where the tokens were kept
    encode_s: float
    score_s: float

    def summary(self, by: Recipe) -> ScoreSummary:
        """Return what a picture says of the score."""
        return ScoreSummary(
            protocol=by.name,
            subject_score=self.score,
            percentile=self.percentile,
            n_reference=self.n_reference,
            batch_version=self.batch_version,
            fingerprint=by.fingerprint,
            threshold=self.threshold,
            encoder=by.encoder_name,
            scored_at=self.scored_at,
        )


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One run."""

    recipe: Recipe
    #: highest score first
    scored: tuple[Scored, ...]
    #: name and reason: these should have been scored
    failed: tuple[tuple[str, str], ...]
    #: name and reason: these are no scan of the kind
    left_out: tuple[tuple[str, str], ...]
    #: None without masks
    evaluation: Report | None


def write_tables(result: BatchResult, folder: Path) -> None:
    """Write ``scores.csv``, a row per scan, and ``scores.json``, all of it."""
    durable.write(folder / "scores.csv", _csv(result).encode())
    text = json.dumps(_finite(_as_json(result)), indent=2, ensure_ascii=False)
    durable.write(folder / "scores.json", f"{text}\n".encode())


def _made_by(result: BatchResult) -> dict[str, str]:
    """Return what both tables say of how the scores were made."""
    return {
        "method": result.recipe.name,
        "encoder": result.recipe.encoder_name,
        "fingerprint": result.recipe.fingerprint,
        "version": __version__,
        "notice": RESEARCH_ONLY,
    }


def _csv(result: BatchResult) -> str:
    """Return a row per scan; of the findings the highest alone."""
    rows = [_row(entry) | _made_by(result) for entry in result.scored]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else list(_made_by(result)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(entry: Scored) -> dict[str, object]:
    """Return the columns of one scan."""
    top = entry.findings[0] if entry.findings else None
    x, y, z = (round(value, 1) for value in top.peak_mm) if top else ("", "", "")
    return {
        "name": entry.name,
        "score": round(entry.score, 4),
        "percentile": round(entry.percentile, 1),
        "n_reference": entry.n_reference,
        "n_findings": len(entry.findings),
        "findings_ml": round(sum(finding.volume_ml for finding in entry.findings), 3),
        "top_score": round(top.max_score, 4) if top else "",
        "top_ml": round(top.volume_ml, 3) if top else "",
        "top_x_lps_mm": x,
        "top_y_lps_mm": y,
        "top_z_lps_mm": z,
        "encode_s": round(entry.encode_s, 1),
        "score_s": round(entry.score_s, 1),
    }


def _as_json(result: BatchResult) -> dict[str, Any]:
    """Return the whole run as plain values."""
    return _made_by(result) | {
        "token_fingerprint": result.recipe.token_fingerprint,
        "specification": asdict(result.recipe.method),
        "written": clock.stamp(clock.now()),
        "subjects": [_subject(entry) for entry in result.scored],
        "failed": _reasons(result.failed),
        "left_out": _reasons(result.left_out),
        "evaluation": asdict(result.evaluation) if result.evaluation else None,
    }


def _subject(entry: Scored) -> dict[str, Any]:
    """Return a scan with all its findings and the files that were made of it."""
    made = {
        "map": f"maps/{entry.name}.nii.gz",
        "raw_map": f"raw/{entry.name}.nii.gz",
        "picture": f"pictures/{entry.name}.png",
    }
    return asdict(entry) | {"scored_at": clock.stamp(entry.scored_at)} | made


def _reasons(entries: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "reason": reason} for name, reason in entries]


def _finite(value: object) -> object:
    """Return the same with null for what is no number: JSON knows no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
