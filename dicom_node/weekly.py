"""What a node in shadow mode would have sent in a week: a page and a table for who decides on it.

Per protocol in shadow mode: each scored study, its objects and where they would have gone, the
series that came to no result, and what is missing to go live. UIDs stand there, and no patient's
name or number. Weeks are those of ISO 8601, in UTC.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dicom_node import __version__, admission, clock, durable
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError
from dicom_node.protocol_config import Protocol
from dicom_node.store import outcomes, reference_table, week
from dicom_node.store.database import Database
from dicom_node.store.outcomes import Outcome
from dicom_node.store.reference_table import ADMITTED
from dicom_node.store.week import StudyRow

_WITHOUT_RESULT = {"waiting", "rejected", "failed"}


@dataclass(frozen=True, slots=True)
class Week:
    """One week: from its Monday at 0:00 UTC to before the next one's."""

    year: int
    number: int

    @classmethod
    def of(cls, moment: datetime) -> Week:
        """Return the week of a moment."""
        year, number, _ = moment.astimezone(UTC).isocalendar()
        return cls(year, number)

    @classmethod
    def named(cls, text: str) -> Week:
        """Read "2026-W48"; raises ConfigError for what is no week."""
        refused = f"--week {text}: no week; write it as 2026-W48 (ISO 8601)"
        found = re.fullmatch(r"(\d{4})-W(\d{2})", text)
        if found is None:
            raise ConfigError(refused)
        year, number = int(found[1]), int(found[2])
        try:
            date.fromisocalendar(year, number, 1)
        except ValueError as error:
            raise ConfigError(refused) from error
        return cls(year, number)

    @property
    def start(self) -> datetime:
        """Its first moment."""
        return datetime.combine(
            date.fromisocalendar(self.year, self.number, 1), datetime.min.time(), UTC
        )

    @property
    def end(self) -> datetime:
        """The first moment of the next."""
        return self.start + timedelta(days=7)

    def __str__(self) -> str:
        """Name it, as in "2026-W48"."""
        return f"{self.year}-W{self.number:02d}"


@dataclass(frozen=True, slots=True)
class Missing:
    """Series that came to no result for one kind of reason."""

    outcome: str
    fault: str
    n: int
    #: of one of them
    reason: str


@dataclass(frozen=True, slots=True)
class ProtocolWeek:
    """What one protocol in shadow mode did in a week."""

    name: str
    studies: tuple[StudyRow, ...]
    missing: tuple[Missing, ...]
    #: patients admitted to the batch now, and how many it needs
    n_admitted: int
    min_reference: int

    @property
    def to_go_live(self) -> str:
        """Say what is to be done before, or to, send results."""
        lacking = self.min_reference - self.n_admitted
        if lacking > 0:
            return (
                f"{lacking} more usual studies of other patients are needed: send them, let them "
                f"in with `dicom-node reference include --protocol {self.name}`, or import a batch."
            )
        return (
            "Read these results beside the pictures. If they are worth being seen, set "
            f'mode = "live" in the [[protocol]] called "{self.name}" and start the node again.'
        )


def collect(config: NodeConfig, database: Database, of: Week) -> list[ProtocolWeek]:
    """Return what each protocol in shadow mode did; raises DatabaseUnavailable."""
    start, end = clock.stamp(of.start), clock.stamp(of.end)
    shadow = [protocol for protocol in config.protocol if protocol.mode == "shadow"]
    with database.read() as db:
        ends = [one for one in outcomes.outcomes(db) if start <= one.at < end]
        studies = week.scored_between(db, [one.name for one in shadow], of.start, of.end)
    return [
        _protocol_week(
            protocol,
            [study for study in studies if study.protocol == protocol.name],
            ends,
            _n_admitted(database, protocol.name),
        )
        for protocol in shadow
    ]


def _n_admitted(database: Database, protocol: str) -> int:
    """Return the patients in the batch, in the token space that was used last."""
    with database.read() as db:
        space = next(iter(reference_table.fingerprints(db, protocol)), "")
        members = reference_table.members(db, protocol, space, (ADMITTED,))
    return len(admission.one_per_patient(members))


def _protocol_week(
    protocol: Protocol, studies: Sequence[StudyRow], ends: Sequence[Outcome], n_admitted: int
) -> ProtocolWeek:
    kinds: dict[tuple[str, str], list[str]] = {}
    for one in ends:
        if one.protocol == protocol.name and one.outcome in _WITHOUT_RESULT:
            kinds.setdefault((one.outcome, one.fault), []).append(one.reason)
    missing = [Missing(*kind, len(texts), texts[-1]) for kind, texts in sorted(kinds.items())]
    return ProtocolWeek(
        protocol.name, tuple(studies), tuple(missing), n_admitted, protocol.min_reference
    )


def as_csv(found: Sequence[ProtocolWeek], config: NodeConfig) -> str:
    """Return a line per scored study, with the destinations its objects would have gone to."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow([*(field.name for field in fields(StudyRow)), "destinations"])
    names = " ".join(destination.name for destination in config.destinations)
    for one in found:
        lines.writerows([*astuple(study), names] for study in one.studies)
    return text.getvalue()


def as_html(found: Sequence[ProtocolWeek], config: NodeConfig, of: Week) -> str:
    """Return one page that needs no other file; what came off the wire is escaped."""
    templates = Environment(
        loader=PackageLoader("dicom_node", "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
    )
    return templates.get_template("weekly.html").render(
        week=of,
        node=config.node.node_id,
        protocols=found,
        destinations=[d.name for d in config.destinations],
        made=clock.now(),
        version=__version__,
    )


def write(config: NodeConfig, database: Database, of: Week) -> Path:
    """Write the page and the table of a week, each whole or absent; returns the page's path.

    They lie in ``data_dir/digests``. Raises DatabaseUnavailable, OSError.
    """
    found, page = collect(config, database, of), page_of(config, of)
    durable.make_folder(page.parent)
    for path, text in (
        (page.with_suffix(".csv"), as_csv(found, config)),
        (page, as_html(found, config, of)),
    ):
        with durable.replacing(path) as partial:
            Path(partial).write_text(text, "utf-8")
    return page


def page_of(config: NodeConfig, of: Week) -> Path:
    """Return where the page of a week lies, or will."""
    return config.node.data_dir / "digests" / f"{of}.html"


def due(config: NodeConfig, at: datetime) -> Week | None:
    """Return the last whole week, if its page is not written yet; None without a shadow protocol.

    One that was written before the week was over is written again.
    """
    last = Week.of(at - timedelta(days=7))
    if all(protocol.mode != "shadow" for protocol in config.protocol):
        return None
    page = page_of(config, last)
    written = page.exists() and page.stat().st_mtime >= last.end.timestamp()
    return None if written else last
