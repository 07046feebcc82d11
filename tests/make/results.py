"""What a score says, for results that are made of any source."""

from datetime import UTC, datetime

from dicom_node.findings import ScoreSummary

SCORE = ScoreSummary(
    protocol="brain",
    subject_score=6.5,
    percentile=97.0,
    n_reference=40,
    batch_version="brain-2026-01",
    fingerprint="0123456789abcdef0123456789abcdef",
    threshold=3.0,
    encoder="vit_small",
    scored_at=datetime(2026, 1, 31, 20, 30, 15, 250000, tzinfo=UTC),
)
