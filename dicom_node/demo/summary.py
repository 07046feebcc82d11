"""The demo's end: a table, pictures, and how the planted lesions fared.

Scores and findings are the ledger's; whether a lesion was found is read from the SEG that came back
from the PACS. What is printed may hold text from the wire or from a file name, so none of it is
taken for markup.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dicom_node.config import NodeConfig, digest
from dicom_node.demo.check import Returned, lesion_ranks, sort_returned
from dicom_node.demo.cohort import Head
from dicom_node.demo.pacs import Pacs, stored_objects
from dicom_node.findings import Finding
from dicom_node.folders import Folders
from dicom_node.store import result_table
from dicom_node.store.database import Database

#: findings per study that are listed, and among which a planted lesion must lie
_HIGHEST = 3
#: a smaller lesion may be missed: a token is 0.34 ml
_SMALLEST_ML = 0.5
_LOG_COLUMNS = 130


class SentSeries(Protocol):
    """What the summary needs of a sent series; `head` is None where nothing was planted."""

    name: str
    study_instance_uid: str
    series_instance_uid: str
    head: Head | None


def show(
    folder: Path, node: NodeConfig, pacs: Pacs, sent: Sequence[SentSeries], console: Console
) -> bool:
    """Print what came back, and keep copies of it below the demo's folder.

    Parameters
    ----------
    folder
        Gets ``returned/<study>/`` with the PACS's objects and ``pictures/``.
    sent
        In the order of the table.

    Returns
    -------
    Whether each planted lesion of 0.5 ml or more lies in one of the three highest findings of its
    study, and each study with lesions scores above the median of those without. True where nothing
    was planted.

    Raises
    ------
    OSError
        The PACS does not answer.
    """
    database = Database(Folders(node.node.data_dir).database)
    table = Table(
        "study",
        "score",
        "percentile",
        "findings: volume, centre (x, y, z) LPS mm",
        "copies of what lies in the PACS",
    )
    scores: dict[str, float] = {}
    missed: list[str] = []
    for entry in sent:
        with database.read() as db:
            row = result_table.series_row(db, entry.series_instance_uid)
            findings = result_table.findings_of(db, row.score_id) if row and row.score_id else []
        if row is None or row.score_id is None:
            reason = str(row.reason if row else "not received")
            table.add_row(entry.name, "-", "-", escape(reason), "-")
            continue
        scores[entry.name] = row.subject_score
        files = stored_objects(pacs, entry.study_instance_uid, folder / "returned" / entry.name)
        returned = sort_returned(files)
        _keep_picture(folder, node, database, row.score_id, entry.name)
        table.add_row(
            entry.name,
            f"{row.subject_score:.1f}",
            f"{row.percentile:.0f} of {row.n_reference}",
            _list_findings(findings),
            escape(_where(returned)),
        )
        missed += _missed(entry, returned)
    # a log file has no width of its own
    console.print(table, width=None if console.is_terminal else _LOG_COLUMNS)
    console.print(f"Pictures: {folder / 'pictures'}", soft_wrap=True, markup=False)
    return _verdict(sent, scores, missed, console)


def _list_findings(findings: Sequence[Finding]) -> str:
    """Write the highest findings as a line each."""
    lines = [
        f"{f.rank}: {f.volume_ml:.1f} ml at "
        f"({', '.join(f'{v:.0f}' for v in f.centroid_mm)}), peak {f.max_score:.1f}"
        for f in findings[:_HIGHEST]
    ]
    more = len(findings) - _HIGHEST
    return (
        "\n".join([*lines, *([f"and {more} more"] if more > 0 else [])])
        or "none above the threshold"
    )


def _where(returned: Returned) -> str:
    """Say where copies of a study's SEG and SC lie, below the demo's folder."""
    parts = []
    if returned.segmentation:
        parts.append(_place(returned.segmentation))
    captures = returned.secondary_captures
    if captures:
        more = f" and {len(captures) - 1} more" if len(captures) > 1 else ""
        parts.append(f"{_place(captures[0])}{more}")
    return "\n".join(parts) or "nothing"


def _place(path: Path) -> str:
    """Write a path below the demo's folder as a person looks for it there."""
    return "/".join(path.parts[-3:])


def _keep_picture(
    folder: Path, node: NodeConfig, database: Database, score_id: int, name: str
) -> None:
    """Copy the summary picture of a score; there is none while its report has not been made."""
    with database.read() as db:
        identity = result_table.score_identity(db, score_id)
    source = Folders(node.node.data_dir).results / digest(*identity) / "summary.png"
    (folder / "pictures").mkdir(exist_ok=True)
    # scored, and yet without results: the report failed, and the table says so
    if source.is_file():
        shutil.copyfile(source, folder / "pictures" / f"{name.replace(' ', '-')}.png")


def _missed(entry: SentSeries, returned: Returned) -> list[str]:
    """Name the planted lesions that do not lie in one of the three highest findings."""
    if entry.head is None:
        return []
    ranks = lesion_ranks(entry.head, returned.segmentation)
    return [
        f"{entry.name}: {lesion.volume_ml:.1f} ml, contrast {lesion.contrast}, in finding {rank}"
        for lesion, rank in zip(entry.head.lesions, ranks, strict=True)
        if lesion.volume_ml >= _SMALLEST_ML and (rank is None or rank > _HIGHEST)
    ]


def _verdict(
    sent: Sequence[SentSeries], scores: dict[str, float], missed: list[str], console: Console
) -> bool:
    """Say how the planted lesions fared; True for a user's own series, where nothing is known.

    Series without a score are left out here: that they are missing is the caller's to say.
    """
    heads: list[Any] = [entry for entry in sent if entry.head is not None and entry.name in scores]
    lesioned = [entry for entry in heads if entry.head.lesions]
    normal = [scores[entry.name] for entry in heads if not entry.head.lesions]
    if not lesioned or not normal:
        return True
    planted = sum(len(entry.head.lesions) for entry in lesioned)
    # not one above the highest normal: a made head may be odd in its own way
    low = [entry.name for entry in lesioned if scores[entry.name] <= median(normal)]
    console.print(
        f"{planted - len(missed)} of {planted} planted lesions lie in one of the three highest "
        f"findings of their study; {len(lesioned) - len(low)} of {len(lesioned)} studies with "
        "lesions score above the median of those without."
    )
    for line in missed:
        console.print(f"[red]missed:[/] {line}")
    return not missed and not low
