"""Looks for delivered objects at their destination: acknowledged is not yet seen.

A PACS may acknowledge an object and drop it, or file it in another study. It is asked for what it
knows of the result's series in the source's study (C-FIND), as a viewer would ask.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

from dicom_node import clock
from dicom_node.association.finder import find_instances
from dicom_node.association.requestor import peer_of
from dicom_node.errors import DeliveryError
from dicom_node.network_config import Destination
from dicom_node.store import found_table
from dicom_node.store.database import Database
from dicom_node.store.found_table import Sought

_log = logging.getLogger(__name__)

#: at most this many objects are looked for over one association
_AT_ONCE = 2000


class Verification:
    """Looks for what one destination was sent. Raises DatabaseUnavailable."""

    def __init__(self, database: Database, destination: Destination, calling_ae_title: str) -> None:
        self._database = database
        self._destination = destination
        self._calling = calling_ae_title

    def step(self) -> bool:
        """Look once for what is due; returns whether there was anything."""
        of, at = self._destination, clock.now()
        if not of.verify:
            return False
        since = at - timedelta(seconds=of.give_up)
        with self._database.read() as db:
            due = found_table.due(db, of.name, at, since, _AT_ONCE)
        if not due:
            return False
        by_series: dict[tuple[str, str], list[Sought]] = defaultdict(list)
        for item in due:
            by_series[item.study_instance_uid, item.series_instance_uid].append(item)
        try:
            known = find_instances(peer_of(of), self._calling, list(by_series), of.timeout)
        except DeliveryError as error:
            _log.warning("verification at %s: %s", of.name, error)
            self._missing(due, f"delivered and not looked for: {error}")
            return True
        for place, items in by_series.items():
            self._settle(place[0], items, known[place])
        return True

    def _settle(self, study_uid: str, items: Sequence[Sought], known: set[str]) -> None:
        """Record what of one series is there, and what is not."""
        there = [item.sop_instance_uid for item in items if item.sop_instance_uid in known]
        if there:
            with self._database.begin() as db:
                found_table.record_found(db, self._destination.name, there, clock.now())
        missing = [item for item in items if item.sop_instance_uid not in known]
        if missing:
            name = self._destination.name
            reason = f"{name} acknowledged it and does not know it in study {study_uid}"
            _log.warning("verification: %d objects: %s", len(missing), reason)
            self._missing(missing, reason)

    def _missing(self, items: Sequence[Sought], reason: str) -> None:
        """Look again later: an archive may take a while to file what it has acknowledged.

        The wait is the time since the delivery, hence doubles, within the destination's limits.
        """
        at, of = clock.now(), self._destination
        age_s = max((at - item.delivered).total_seconds() for item in items)
        later = at + timedelta(seconds=min(of.retry_max, max(of.retry_first, age_s)))
        uids = [item.sop_instance_uid for item in items]
        with self._database.begin() as db:
            found_table.record_missing(db, of.name, uids, reason, later)
