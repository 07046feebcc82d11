"""Every reference subject can be compared with, and every batch is of known subjects."""

from __future__ import annotations

from collections.abc import Iterator

from dicom_node.invariants.violation import Kind, Seen, Violation
from dicom_node.store.reference_table import ADMITTED, CANDIDATE


def check(seen: Seen) -> Iterator[Violation]:
    """Yield members without tokens, and subjects of batches that nobody knows."""
    for row in seen.rows.members:
        serves = row.state in (ADMITTED, CANDIDATE)
        if serves and not seen.token_file(row.fingerprint, row.subject).is_file():
            text = f"{row.state} in protocol {row.protocol}, and its tokens are not there"
            yield Violation(Kind.MEMBER_LOST, row.subject, text)
    members = {(row.protocol, row.fingerprint, row.subject) for row in seen.rows.members}
    for batch in seen.rows.batches:
        for subject in batch.subjects:
            if (batch.protocol, batch.fingerprint, subject) in members:
                continue
            # a decision that was undone leaves no row of the member, and stands itself
            if not any(f'"{subject}"' in text for text in seen.rows.decisions):
                text = f"subject {subject} of it is no member of protocol {batch.protocol}"
                yield Violation(Kind.SUBJECT_UNKNOWN, batch.version, text)
