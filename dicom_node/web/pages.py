"""Ledger rows -> HTML, by Jinja2 templates with autoescape on.

Reasons and AE titles come off the wire, so every value is escaped; a template that names a value
which does not exist is an error rather than a gap. No page holds a patient's name or number.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dicom_node import __version__
from dicom_node.config import NodeConfig
from dicom_node.grouping import Protocols
from dicom_node.protocol_config import Protocol
from dicom_node.store import (
    outcomes,
    reference_table,
    result_table,
    series_table,
    warning_table,
)
from dicom_node.store.database import Database

#: of the worklist; older series are reached by their address
_ROWS = 500


class Pages:
    """Renders the pages from the ledger, each from one read transaction.

    What reads the ledger raises DatabaseUnavailable when that does not answer. A `uid` is any text:
    it stood in an address.
    """

    def __init__(self, config: NodeConfig, database: Database) -> None:
        self._config = config
        self._database = database
        self._protocols = Protocols(config, database)
        self._templates = Environment(
            loader=PackageLoader("dicom_node.web"),
            autoescape=select_autoescape(default=True),
            undefined=StrictUndefined,
        )

    def check(self) -> None:
        """Read a little of the ledger; returns if it answers."""
        with self._database.read() as db:
            series_table.counts(db)

    def _render(self, template: str, **values: Any) -> str:  # noqa: ANN401 - template values
        return self._templates.get_template(template).render(
            version=__version__, ae_title=self._config.node.ae_title, **values
        )

    def worklist(self) -> str:
        """Render the newest series first, with warnings, queues, batches and the newest faults."""
        discovered = self._discovered()
        with self._database.read() as db:
            return self._render(
                "worklist.html",
                rows=result_table.worklist(db, _ROWS),
                counts=series_table.counts(db),
                members=reference_table.counts(db),
                deliveries=result_table.delivery_counts(db),
                faults=result_table.delivery_faults(db, 10),
                refusals=series_table.recent_refusals(db, 10),
                protocols=(*self._config.protocol, *discovered.values()),
                discovered=discovered,
                warnings=warning_table.open_warnings(db),
                outcomes=outcomes.counts(db),
            )

    def study(self, uid: str, part: str = "") -> str | None:
        """Render one series: score, findings, picture, delivery; None when it is unknown.

        Of a series of several volumes it is one of them, the first where none is named; each links
        to the others.
        """
        discovered = self._discovered()
        with self._database.read() as db:
            rows = result_table.series_rows(db, uid)
            row = next((row for row in rows if part in ("", row.part)), None)
            if row is None:
                return None
            scored = row.score_id is not None
            return self._render(
                "study.html",
                row=row,
                parts=rows if row.part else [],
                discovered=discovered,
                findings=result_table.findings_of(db, row.score_id) if scored else [],
                deliveries=result_table.deliveries_of(db, row.score_id) if scored else [],
            )

    def _discovered(self) -> dict[str, Protocol]:
        """Return the protocols that the node found by itself, by name."""
        return {entry.protocol.name: entry.protocol for entry in self._protocols.discovered()}

    def picture(self, uid: str, part: str = "") -> tuple[str, str, str] | None:
        """Return what names the folder of the results of a series, or of one part of it.

        Returns
        -------
        Subject, fingerprint and batch version of the newest revision's score; None without one.
        """
        with self._database.read() as db:
            row = result_table.series_row(db, uid, part)
            if row is None or row.score_id is None:
                return None
            return result_table.score_identity(db, row.score_id)

    def style(self) -> str:
        """Return the style sheet, which is part of the package."""
        return resources.files("dicom_node.web").joinpath("style.css").read_text("utf-8")
