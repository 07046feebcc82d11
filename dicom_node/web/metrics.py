"""The ledger's counts in the Prometheus text format (only importer of prometheus_client).

Several processes make a node, and all of them write to the ledger: it is read when it is asked,
nothing is counted beside it, and a restart sets no counter back. What has ended is counted once and
remembered (:mod:`dicom_node.store.ledger_counts`).

Labels are names of the configuration, stages, states and statuses: no UID, no AE title off the
wire, nothing of a patient.

References
----------
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
import shutil
import threading
from collections import Counter, deque
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from dicom_node import __version__, clock
from dicom_node.config import NodeConfig
from dicom_node.store import ledger_counts, reference_table, score_counts, warning_table
from dicom_node.store.database import Database
from dicom_node.store.ledger_counts import EDGES_S, Ended, Totals

CONTENT_TYPE = CONTENT_TYPE_LATEST
_STATUS = re.compile(r"refused with (0x[0-9A-F]{4}):")
_PERCENTILE_EDGES = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 100.0)
_QUANTILES = (0.1, 0.5, 0.9)
#: scores of a protocol that `dicom_node_recent_score_percentile` is of
_RECENT = 200


class LedgerMetrics(Collector):
    """What the ledger holds, as families of metrics; one per process, asked by any thread."""

    def __init__(self, config: NodeConfig, database: Database) -> None:
        self._config = config
        self._database = database
        self._lock = threading.Lock()
        self._jobs, self._deliveries = ledger_counts.ended_jobs(), ledger_counts.ended_deliveries()
        self._refusals: Counter[str] = Counter()
        self._last_refusal = self._last_score = 0
        self._percentiles: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self._recent: dict[str, deque[float]] = {}

    def text(self) -> bytes:
        """Return everything in the text format; raises DatabaseUnavailable."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def describe(self) -> list[Metric]:
        """Return nothing: to register it must not read the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the families, all of one moment of the ledger; raises DatabaseUnavailable."""
        # the first scrape of a process reads all that ended: a second one waits for it
        with self._lock:
            with self._database.read() as db:
                totals = ledger_counts.totals(db)
                self._jobs.update(db)
                self._deliveries.update(db)
                refusals = ledger_counts.refusals_after(db, self._last_refusal)
                scores = score_counts.after(db, self._last_score)
                members = reference_table.counts_in_force(db)
                warnings = warning_table.open_warnings(db)
            self._count(refusals, scores)
            kinds = Counter((row.protocol, row.kind) for row in warnings)
            families = list(self._families(totals, members, kinds))
        yield from families

    def _count(self, refusals: list[tuple[int, str]], scores: list[tuple[int, str, float]]) -> None:
        """Count what came since the last scrape."""
        for number, reason in refusals:
            self._refusals[_kind_of(reason)] += 1
            self._last_refusal = number
        for number, protocol, percentile in scores:
            self._count_score(protocol, percentile)
            self._last_score = number

    def _count_score(self, protocol: str, percentile: float) -> None:
        buckets = self._percentiles.setdefault(protocol, [0] * (len(_PERCENTILE_EDGES) + 1))
        place = next(
            (n for n, edge in enumerate(_PERCENTILE_EDGES) if percentile <= edge), len(buckets) - 1
        )
        buckets[place] += 1
        self._sums[protocol] = self._sums.get(protocol, 0.0) + percentile
        self._recent.setdefault(protocol, deque(maxlen=_RECENT)).append(percentile)

    def _families(
        self, totals: Totals, members: dict[tuple[str, str], int], kinds: Counter[tuple[str, str]]
    ) -> Iterator[Metric]:
        yield from self._received(totals)
        yield from self._queues(totals)
        yield from self._scores()
        yield from _reference(members, kinds)
        yield from self._machine()

    def _received(self, totals: Totals) -> Iterator[Metric]:
        yield _counter("received_instances", "Instances filed.", totals.n_instances)
        yield _counter("associations", "Associations accepted.", totals.n_associations)
        yield _gauge("open_associations", "Associations that are open.", totals.n_open_associations)
        refusals = _labelled_counter("refusals", "Refusals that were recorded.", "status")
        for status, n in sorted(self._refusals.items()):
            refusals.add_metric([status], n)
        yield refusals
        series = _labelled_gauge("series", "Series by how far they are received.", "state")
        for state, n in totals.n_series.items():
            series.add_metric([state], n)
        yield series

    def _queues(self, totals: Totals) -> Iterator[Metric]:
        yield from _queue("jobs", "stage", self._jobs, totals.open_jobs)
        open_deliveries = totals.open_deliveries
        for of in self._config.destinations:  # a destination without a dead letter says 0
            open_deliveries.setdefault((of.name, "dead"), 0)
        yield from _queue("deliveries", "destination", self._deliveries, open_deliveries)
        oldest = _labelled_gauge(
            "oldest_queued_seconds", "For how long the oldest queued job is due.", "stage"
        )
        for stage, moment in totals.oldest_queued.items():
            waited = (clock.now() - clock.parse(moment)).total_seconds()
            oldest.add_metric([stage], max(0.0, waited))
        yield oldest

    def _scores(self) -> Iterator[Metric]:
        found = HistogramMetricFamily(
            "dicom_node_score_percentile",
            "Percentile of each score among the reference subjects' own.",
            labels=["protocol"],
        )
        recent = _labelled_gauge(
            "recent_score_percentile",
            f"Quantiles of the last {_RECENT} percentiles.",
            "protocol",
            "quantile",
        )
        for protocol, buckets in self._percentiles.items():
            edges = _cumulated(_PERCENTILE_EDGES, buckets)
            found.add_metric([protocol], edges, self._sums[protocol])
            ordered = sorted(self._recent[protocol])
            for share in _QUANTILES:
                value = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
                recent.add_metric([protocol, f"{share:g}"], value)
        yield from (found, recent)

    def _machine(self) -> Iterator[Metric]:
        usage = shutil.disk_usage(self._config.node.data_dir)
        yield _gauge("disk_free_bytes", "Free where the data folder lies.", usage.free)
        yield _gauge("disk_size_bytes", "Size of the disk of the data folder.", usage.total)
        reserve = self._config.storage.reserve
        yield _gauge("disk_reserve_bytes", "Below it C-STORE is refused.", reserve)
        build = _labelled_gauge("build_info", "Version of the program; always 1.", "version")
        build.add_metric([__version__], 1)
        yield build


def _reference(
    members: dict[tuple[str, str], int], kinds: Counter[tuple[str, str]]
) -> Iterator[Metric]:
    known = _labelled_gauge(
        "reference_members", "Subjects known to the batch in force.", "protocol", "state"
    )
    for (protocol, state), n in members.items():
        known.add_metric([protocol, state], n)
    warnings = _labelled_gauge("open_warnings", "Open warnings.", "protocol", "kind")
    for (protocol, kind), n in kinds.items():
        warnings.add_metric([protocol, kind], n)
    yield from (known, warnings)


def _queue(
    name: str, label: str, ended: Ended, open_now: Counter[tuple[str, str]]
) -> Iterator[Metric]:
    """Yield what of a queue is open, what has ended, and how long that took."""
    depth = _labelled_gauge(
        f"open_{name}", f"Of the {name}, those that have not ended.", label, "state"
    )
    for key, n in sorted(open_now.items()):
        depth.add_metric(list(key), n)
    total = _labelled_counter(
        f"ended_{name}", f"Of the {name}, those that have ended.", label, "state"
    )
    seconds = HistogramMetricFamily(
        f"dicom_node_{name}_seconds",
        f"Of the {name} that were done: from queued to done, all waits included.",
        labels=[label],
    )
    for (of, state), found in sorted(ended.durations.items()):
        total.add_metric([of, state], found.n)
        if state != "superseded":
            seconds.add_metric([of], _cumulated(EDGES_S, found.buckets), found.total_s)
    yield from (depth, total, seconds)


def _cumulated(edges: tuple[float, ...], buckets: list[int]) -> list[tuple[str, float]]:
    """Return the buckets as the format wants them: each holds all below it."""
    names = [*(str(edge) for edge in edges), "+Inf"]
    return list(zip(names, map(float, accumulate(buckets)), strict=True))


def _kind_of(reason: str) -> str:
    """Return the C-STORE status of a recorded refusal, or what else it was of."""
    found = _STATUS.search(reason)
    if found:
        return found[1]
    return "tls" if reason.startswith("no TLS connection") else "other"


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"dicom_node_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"dicom_node_{name}", text, value=value)


def _labelled_counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"dicom_node_{name}", text, labels=labels)


def _labelled_gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dicom_node_{name}", text, labels=labels)
