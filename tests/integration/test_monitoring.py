"""What a monitor reads: counters over a real ledger, readiness with its reasons, rules that fit."""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update
from starlette.testclient import TestClient

from dicom_node import clock, processes
from dicom_node.config import Node, NodeConfig, Storage
from dicom_node.folders import Folders
from dicom_node.jobs import DeliveryState, JobState, Stage
from dicom_node.network_config import Destination
from dicom_node.store import reference_table, result_table, series_table, warning_table
from dicom_node.store.reference_table import Member
from dicom_node.store.tables import job
from dicom_node.store.warning_table import Key, Notice
from dicom_node.web.app import make_app
from dicom_node.web.readiness import Readiness
from tests.make.ledgers import (
    NOON,
    after,
    complete_series,
    enqueue,
    ledger,
    protocol,
    record_score,
    result_object,
    score,
)

DEPLOY = Path(__file__).parents[2] / "deploy" / "monitoring"
UID, SENDER = "1.2.840.99.1", "SECRET_SENDER"


@contextmanager
def site(folder):
    folders = Folders(folder)
    folders.create()
    config = NodeConfig(
        node=Node(data_dir=folder),
        protocol=(protocol(),),
        destination=(Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=104),),
    )
    with ledger(folders.root) as database:
        app = make_app(config, database, folders)
        with TestClient(app, "http://127.0.0.1:8042") as client:
            yield Site(config, database, client)


class Site:
    def __init__(self, config, database, client):
        self.config, self.database, self.client = config, database, client

    def scraped(self):
        """(name, labels) -> value of every sample."""
        answer = self.client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return {
            (one.name.removeprefix("dicom_node_"), frozenset(one.labels.items())): one.value
            for family in text_string_to_metric_families(answer.text)
            for one in family.samples
        }


def key(name, **labels):
    return name, frozenset(labels.items())


@pytest.fixture
def node(tmp_path):
    with site(tmp_path / "data") as made:
        yield made


def fill(node):
    """A series that was scored and sent, and one of everything that may go wrong."""
    database = node.database
    complete_series(database, UID)
    score_id = record_score(database, score(UID, percentile=97.0))
    objects = [result_object(n, score_id) for n in (1, 2, 3)]
    with database.begin() as db:
        result_table.record_results(db, score_id, [], objects, ["pacs"], NOON)
        for made, state in zip(
            objects, (DeliveryState.DELIVERED, DeliveryState.DEAD), strict=False
        ):
            uids = [made.sop_instance_uid]
            result_table.settle_delivery(db, "pacs", uids, state, after(40))
        for reason in (
            f"instance {UID} refused with 0xC000: truncated",
            f"instance {UID}.2 refused with 0xC000: truncated",
            "instances refused with 0xA700: the disk of the node is full",
            "no TLS connection: plain",
            "SOP Class not accepted: X",
        ):
            series_table.record_refusal(db, SENDER, "192.0.2.9", reason, NOON)
        reference_table.add(
            db, "t1", "f", Member("s", UID, "patient-digest", "admitted", "", clock.stamp(NOON))
        )
        warning_table.settle(db, [Notice(Key("t1", "shift", "scanner 7"), "text")], NOON)
    end(database, enqueue(database, UID, Stage.SCORE), JobState.DONE, after(20))
    end(database, enqueue(database, "1.9", Stage.SCORE), JobState.FAILED, after(20))


def end(database, number, state, at):
    with database.begin() as db:
        values = {"state": state.value, "updated": clock.stamp(at)}
        db.execute(update(job).where(job.c.id == number).values(**values))


def test_the_counts_are_those_of_the_ledger(node):
    fill(node)
    found = node.scraped()
    assert found[key("received_instances_total")] == 1
    assert found[key("associations_total")] == 1
    assert found[key("refusals_total", status="0xC000")] == 2
    assert found[key("refusals_total", status="0xA700")] == 1
    assert found[key("refusals_total", status="tls")] == 1
    assert found[key("refusals_total", status="other")] == 1
    assert found[key("series", state="complete")] == 1
    assert found[key("open_jobs", stage="tokenize", state="queued")] == 1
    assert found[key("open_jobs", stage="score", state="failed")] == 1
    assert found[key("ended_jobs_total", stage="score", state="done")] == 1
    assert found[key("jobs_seconds_bucket", stage="score", le="15.0")] == 0
    assert found[key("jobs_seconds_bucket", stage="score", le="30.0")] == 1
    assert found[key("jobs_seconds_sum", stage="score")] == pytest.approx(20.0, abs=0.01)
    assert found[key("open_deliveries", destination="pacs", state="dead")] == 1
    assert found[key("open_deliveries", destination="pacs", state="queued")] == 1
    assert found[key("ended_deliveries_total", destination="pacs", state="delivered")] == 1
    assert found[key("deliveries_seconds_bucket", destination="pacs", le="60.0")] == 1
    assert found[key("score_percentile_bucket", protocol="t1", le="95.0")] == 0
    assert found[key("score_percentile_bucket", protocol="t1", le="99.0")] == 1
    assert found[key("recent_score_percentile", protocol="t1", quantile="0.5")] == 97.0
    assert found[key("reference_members", protocol="t1", state="admitted")] == 1
    assert found[key("open_warnings", protocol="t1", kind="shift")] == 1
    assert found[key("disk_free_bytes")] > 0


def test_what_ends_between_two_scrapes_is_counted_once(node):
    first = enqueue(node.database, "1.1", Stage.SCORE)
    assert node.scraped()[key("open_jobs", stage="score", state="queued")] == 1
    end(node.database, first, JobState.DONE, after(3))
    second = enqueue(node.database, "1.2", Stage.SCORE)
    end(node.database, second, JobState.DONE, after(3))
    late = enqueue(node.database, "1.3", Stage.SCORE)
    done = key("ended_jobs_total", stage="score", state="done")
    assert [node.scraped()[done] for _ in range(3)] == [2, 2, 2]
    end(node.database, late, JobState.FAILED, after(3))
    assert node.scraped()[done] == 2
    end(node.database, late, JobState.DONE, after(9))  # after a retry
    assert [node.scraped()[done] for _ in range(2)] == [3, 3]


def test_two_processes_say_the_same(node):
    fill(node)
    before = node.scraped()
    app = make_app(node.config, node.database, Folders(node.config.node.data_dir))
    with TestClient(app, "http://127.0.0.1:8042") as client:
        again = Site(node.config, node.database, client).scraped()
    moving = {name for name in before if name[0] in {"disk_free_bytes", "oldest_queued_seconds"}}
    assert {k: v for k, v in before.items() if k not in moving} == {
        k: v for k, v in again.items() if k not in moving
    }


def test_no_uid_no_sender_and_no_patient_is_told(node):
    fill(node)
    said = node.client.get("/metrics").text
    for secret in (UID, "1.2.840", "2.25.", SENDER, "192.0.2.9", "patient-digest", "scanner 7"):
        assert secret not in said


def test_an_empty_ledger_has_every_family_that_alerts_need(node):
    found = node.scraped()
    assert found[key("open_deliveries", destination="pacs", state="dead")] == 0


def test_a_scrape_of_100_000_rows_is_quick_when_they_are_counted_once(node):
    n = 100_000
    rows = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :n) "
        "INSERT INTO job (series_instance_uid, revision, stage, state, priority, attempts, "
        "not_before, created, updated) SELECT '1.' || i, 1, 'score', 'done', 0, 1, :at, :at, "
        ":later FROM n"
    )
    with node.database.begin() as db:
        db.execute(text(rows), {"n": n, "at": clock.stamp(NOON), "later": clock.stamp(after(2))})
    found = node.scraped()
    assert found[key("ended_jobs_total", stage="score", state="done")] == n
    started = time.process_time()
    node.scraped()
    # by its own processor time: what else the machine does fails no test
    assert time.process_time() - started < 0.5


# -- ready or not ------------------------------------------------------------------------------

ALL = frozenset({"receiver", "dispatcher", "worker-1", "control"})


def test_a_node_whose_parts_run_is_ready(node):
    assert Readiness(node.config, node.database, lambda: ALL, lambda: {11112}).faults() == []


@pytest.mark.parametrize(
    ("parts", "ports", "reserve", "reason"),
    [
        (ALL - {"worker-1"}, {11112}, "1 MiB", "worker-1 does not run"),
        (ALL - {"receiver"}, {11112}, "1 MiB", "receiver does not run"),
        (ALL - {"dispatcher"}, {11112}, "1 MiB", "dispatcher does not run"),
        (ALL, {8042}, "1 MiB", "nobody listens on port 11112"),
        (ALL, {11112}, "900000 GiB", "storage.reserve"),
    ],
)
def test_what_is_missing_is_the_reason(node, parts, ports, reserve, reason):
    config = node.config.model_copy(update={"storage": Storage(reserve=reserve)})
    [fault] = Readiness(config, node.database, lambda: parts, lambda: ports).faults()
    assert reason in fault


def test_a_ledger_that_is_gone_is_a_reason(node):
    node.database.close()
    for file in node.config.node.data_dir.glob("ledger.sqlite*"):
        file.unlink()
    [fault] = Readiness(node.config, node.database, lambda: ALL, lambda: {11112}).faults()
    assert "ledger does not answer" in fault
    assert node.client.get("/metrics").status_code == 503


def test_the_page_alone_is_not_ready_and_says_why(node):
    answer = node.client.get("/readyz")
    assert answer.status_code == 503
    assert "receiver does not run" in answer.text
    assert node.client.get("/healthz").status_code == 200


# -- what the machine says ---------------------------------------------------------------------


def test_parts_are_known_by_their_supervisor():
    words = ["-m", "dicom_node.parts.scorer", "--name", "worker-9", "--parent", "424242"]
    command = [sys.executable, "-c", "input()", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as part:
        try:
            assert processes.parts_of(424242) == {"worker-9"}
            assert processes.parts_of(424243) == frozenset()
        finally:
            part.communicate(b"\n")
    assert processes.parts_of(424242) == frozenset()


def test_who_listens_and_who_holds_a_lock_is_seen(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert port not in processes.listening_ports()
        listener.listen()
        assert port in processes.listening_ports()
    lock = tmp_path / "node.lock"
    assert processes.holder(lock) is None
    with lock.open("w") as held:
        assert processes.holder(lock) is None
        fcntl.flock(held, fcntl.LOCK_EX)
        assert processes.holder(lock) == os.getpid()
    assert processes.holder(lock) is None


# -- the files for Prometheus and Grafana ------------------------------------------------------


def used(said):
    return set(re.findall(r"\bdicom_node_[a-z_]+\b", said))


def test_alerts_and_dashboard_use_only_what_there_is(node):
    fill(node)
    there = {f"dicom_node_{name}" for name, _ in node.scraped()}
    alerts = used((DEPLOY / "alerts.yml").read_text("utf-8"))
    board = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    shown = used(json.dumps([panel["targets"] for panel in board["panels"]]))
    assert len(alerts) > 5
    assert len(shown) > 12
    assert alerts - there == set()
    assert shown - there == set()


def test_labels_of_alerts_and_dashboard_are_those_of_the_metrics(node):
    fill(node)
    known = {"instance", "job", "le", "severity"}
    known |= {label for _, labels in node.scraped() for label, _ in labels}
    said = (DEPLOY / "alerts.yml").read_text("utf-8") + (DEPLOY / "grafana.json").read_text("utf-8")
    named = set(re.findall(r"\{\{ *\$labels\.(\w+) *\}\}|\{\{(\w+)\}\}", said))
    assert {one or other for one, other in named} <= known
