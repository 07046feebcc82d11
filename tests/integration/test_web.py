"""The page over a real ledger: what it shows, what it refuses, and how it fails."""

import http.client
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dicom_node.config import Node, NodeConfig, digest
from dicom_node.findings import Finding
from dicom_node.folders import Folders
from dicom_node.grouping import Protocols
from dicom_node.jobs import DeliveryState, JobState, Stage
from dicom_node.network_config import Destination
from dicom_node.protocol_config import Match
from dicom_node.series import Part
from dicom_node.store import job_table, part_table, result_table, series_table, warning_table
from dicom_node.store.database import Database
from dicom_node.store.warning_table import Key, Notice
from dicom_node.web.app import make_app
from dicom_node.web.pages import Pages
from tests.make.instances import make_instance
from tests.make.ledgers import (
    NOON,
    complete_series,
    enqueue,
    ledger,
    protocol,
    record_score,
    result_object,
    score,
)

SCORED, WAITING = "1.2.840.1", "1.2.840.2"
HOSTILE = "<script>alert('x')</script>"
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
UNKNOWN = [
    "/series/1.2.3",
    "/series/",
    "/series/../../etc/passwd",
    "/series/..%2f..%2f..%2fetc%2fpasswd",
    "/series/%2e%2e",
    "/series/%2e%2e/summary.png",
    "/series/..%2f..%2fetc%2fpasswd/summary.png",
    "/series/%00/summary.png",
    f"/series/{'9' * 300}",
    f"/series/{'9' * 300}/summary.png",
    f"/series/{SCORED}%20/summary.png",
    f"/series/{WAITING}/summary.png",
    f"/series/{SCORED}/seg.dcm",
    "/ledger.sqlite",
    "/docs",
]


@contextmanager
def site(folder):
    """A data folder, its ledger and the page over both."""
    folders = Folders(folder)
    folders.create()
    config = NodeConfig(
        node=Node(ae_title="PAGE_NODE"),
        protocol=(protocol(),),
        destination=(Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=104),),
    )
    with ledger(folders.root, timeout_s=0.2) as database:
        app = make_app(config, database, folders)
        with TestClient(app, "http://127.0.0.1:8042", raise_server_exceptions=False) as client:
            yield Site(folders, database, app, client)


@dataclass
class Site:
    folders: Folders
    database: Database
    app: Starlette
    client: TestClient

    @property
    def picture(self):
        entry = score(SCORED)
        name = digest(entry.subject, entry.fingerprint, entry.batch_version)
        return self.folders.results / name / "summary.png"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """One series with score, finding, picture and a refused object; one that waits. Only read."""
    with site(tmp_path_factory.mktemp("filled")) as made:
        fill(made)
        yield made


@pytest.fixture(scope="module")
def client(filled):
    return filled.client


@pytest.fixture
def empty(tmp_path):
    with site(tmp_path) as made:
        yield made


def fill(made):
    database = made.database
    for uid in (SCORED, WAITING):
        complete_series(database, uid)
    score_id = record_score(database, score(SCORED))
    found = Finding(1, 1.25, 9.5, 6.5, (1.0, -2.0, 3.0), (1.0, 2.0, 3.0), 14.0)
    item = result_object(1, score_id)
    with database.begin() as db:
        result_table.record_results(db, score_id, [found], [item], ["pacs"], NOON)
        result_table.settle_delivery(
            *(db, "pacs", [item.sop_instance_uid], DeliveryState.DEAD, NOON), reason=HOSTILE
        )
        series_table.record_refusal(db, HOSTILE, "127.0.0.1", f"refused {HOSTILE}", NOON)
        odd = Key("t1", "token shift", HOSTILE, HOSTILE)
        warning_table.settle(db, [Notice(odd, f"20 studies of {HOSTILE}: look at them")], NOON)
    _run(database, SCORED, Stage.REPORT, JobState.DONE, "1 findings")
    _run(database, WAITING, Stage.SCORE, JobState.WAITING, f"too small {HOSTILE}")
    made.picture.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(made.picture)


def _run(database, uid, stage, state, reason):
    """Queue a job and run it to its state, as a worker does."""
    number = enqueue(database, uid, stage, protocol="t1", at=NOON)
    with database.begin() as db:
        assert job_table.move(db, number, JobState.RUNNING, NOON)
        assert job_table.move(db, number, state, NOON, reason=reason)


# -- what is shown ----------------------------------------------------------------------------


def test_what_the_node_discovered_is_marked(empty):
    protocols = Protocols(
        NodeConfig(protocol=(protocol(match=Match(modality="CT")),)), empty.database
    )
    name = protocols.claim(make_instance("MR"), (2.0, 1.0, 1.0)).name
    complete_series(empty.database, SCORED)
    with empty.database.begin() as db:
        series_table.set_protocol(db, SCORED, name)
    page = empty.client.get("/").text
    assert f"{name} (discovered, shadow): admitted + candidates, minimum 15" in page
    assert f'<td>{name}<br><span class="dim">discovered, shadow</span></td>' in page
    assert "protocol (discovered, shadow)" in empty.client.get(f"/series/{SCORED}").text


def test_an_empty_worklist_says_where_to_route(empty):
    answer = empty.client.get("/")
    assert answer.status_code == 200
    assert "Route CT or MR series to AE title PAGE_NODE" in answer.text
    assert "Research use only, not for diagnosis" in answer.text
    for head in ("Needs a look", "Warnings", "Outcomes"):
        assert head not in answer.text


def test_the_worklist_shows_each_series_with_its_state(client):
    page = client.get("/").text
    assert f'href="/series/{SCORED}"' in page
    assert f'href="/series/{WAITING}"' in page
    cells = re.findall(r'<td class="number">(.*?)</td>', page)
    assert sorted(cells) == ["", "", "", "1", "2.5", "80 of 15"]
    assert "score waiting" in page
    assert "1 objects dead for pacs" in page


def test_warnings_and_outcomes_are_shown_and_escaped(client):
    page = client.get("/").text
    escaped = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"
    assert f"20 studies of {escaped}: look at them" in page
    assert "token shift, t1" in page
    assert "since 2026-01-02 12:00" in page
    assert "<td>none</td><td>waiting</td><td></td><td>1</td>" in page
    assert "<td>none</td><td>scored</td><td></td><td>1</td>" in page


def test_a_scored_study_shows_score_findings_picture_and_delivery(client):
    page = client.get(f"/series/{SCORED}").text
    assert f'src="/series/{SCORED}/summary.png"' in page
    for text in ("2.5", "percentile of 15", "t1-batch", "1.25", "9.5", "1, -2, 3", "1 dead"):
        assert text in page, text


def test_a_study_without_score_says_why_and_shows_no_picture(client):
    page = client.get(f"/series/{WAITING}").text
    assert "score waiting" in page
    assert "too small" in page
    assert_no_findings_known(page)


def assert_no_findings_known(page):
    """That no region is above the threshold may be said of a reported study alone."""
    assert "Not reported: findings are not known." in page
    assert "No region above" not in page
    assert "<img" not in page


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.RUNNING])
def test_a_score_without_report_is_no_statement_about_findings(empty, state):
    complete_series(empty.database, SCORED)
    record_score(empty.database, score(SCORED))
    number = enqueue(empty.database, SCORED, Stage.REPORT)
    with empty.database.begin() as db:
        job_table.move(db, number, JobState.RUNNING, NOON)
        job_table.move(db, number, state, NOON)
    page = empty.client.get(f"/series/{SCORED}").text
    assert "subject score" in page
    assert_no_findings_known(page)
    assert '<td class="number">0</td>' not in empty.client.get("/").text


def test_a_report_without_findings_says_so_and_no_more(empty):
    complete_series(empty.database, SCORED)
    record_score(empty.database, score(SCORED))
    _run(empty.database, SCORED, Stage.REPORT, JobState.DONE, "0 findings, 2 objects")
    page = empty.client.get(f"/series/{SCORED}").text
    assert "No region above the threshold. This is no statement that the study is normal." in page
    assert "<img" in page
    assert '<td class="number">0</td>' in empty.client.get("/").text


def test_the_picture_is_the_file_of_the_score(client, filled):
    answer = client.get(f"/series/{SCORED}/summary.png")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == filled.picture.read_bytes()


def test_a_picture_that_is_not_made_yet_is_not_found(empty):
    fill(empty)
    empty.picture.unlink()
    answer = empty.client.get(f"/series/{SCORED}/summary.png")
    assert (answer.status_code, answer.text) == (404, "no picture yet")


def test_the_style_sheet_is_served(client):
    answer = client.get("/style.css")
    assert answer.headers["content-type"].startswith("text/css")
    assert "table {" in answer.text


def test_what_comes_off_the_wire_is_escaped(client):
    for path in ("/", f"/series/{WAITING}", f"/series/{SCORED}"):
        page = client.get(path).text
        assert "<script" not in page, path
        assert "&lt;script&gt;alert(&#39;x&#39;)" in page, path


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("path", UNKNOWN)
def test_what_is_unknown_is_not_found(served, path):
    """Over a socket: a client library would tidy the path up before it is sent."""
    status, headers, body = served(path)
    assert status == 404
    assert "root:" not in body
    assert_safe(headers)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8042", "[::2]"]
)
@pytest.mark.parametrize("path", ["/", "/healthz", f"/series/{SCORED}/summary.png"])
def test_a_foreign_host_is_refused(client, host, path):
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == 400
    assert SCORED not in answer.text
    assert_safe(answer.headers)


@pytest.mark.parametrize("host", ["127.0.0.1:8042", "localhost:8042", "LOCALHOST", "[::1]:8042"])
def test_its_own_names_are_served(client, host):
    assert client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", f"/series/{SCORED}", "/healthz"])
def test_nothing_but_reading_is_allowed(client, method, path):
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert_safe(answer.headers)


def assert_safe(headers):
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    for name, value in HEADERS.items():
        assert headers[name] == value, name


@pytest.mark.parametrize(
    "path", ["/", f"/series/{SCORED}", f"/series/{SCORED}/summary.png", "/style.css", "/healthz"]
)
def test_every_page_carries_the_security_headers(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert_safe(answer.headers)


# -- how it fails -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/", f"/series/{SCORED}"])
def test_a_ledger_that_is_gone_is_503(empty, path):
    empty.database.close()
    for file in empty.folders.root.glob("ledger.sqlite*"):
        file.unlink()
    answer = empty.client.get(path)
    assert answer.status_code == 503
    assert "the ledger does not answer" in answer.text
    assert answer.headers["refresh"] == "5"
    assert_safe(answer.headers)


def test_a_damaged_ledger_is_503(empty):
    empty.database.close()
    for file in empty.folders.root.glob("ledger.sqlite*"):
        file.unlink()
    empty.folders.database.write_bytes(b"not a database" * 1000)
    assert empty.client.get("/healthz").status_code == 503


def test_a_ledger_that_a_writer_holds_still_answers(empty):
    with empty.database.begin() as db:
        series_table.record_refusal(db, "A", "127.0.0.1", "half written", NOON)
        answer = empty.client.get("/")
    assert answer.status_code == 200
    assert "half written" not in answer.text


def test_a_ledger_that_comes_back_is_healthy_again(empty):
    path, aside = empty.folders.database, empty.folders.root / "aside"
    empty.database.close()
    path.rename(aside)
    path.mkdir()
    assert empty.client.get("/healthz").status_code == 503
    path.rmdir()
    aside.rename(path)
    answer = empty.client.get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")


def test_a_fault_of_ours_is_500_without_its_words(client, monkeypatch):
    def fail(_self):
        raise RuntimeError("a patient's name")

    monkeypatch.setattr(Pages, "worklist", fail)
    answer = client.get("/")
    assert answer.status_code == 500
    assert "patient" not in answer.text
    assert_safe(answer.headers)


@pytest.fixture(scope="module")
def served(filled):
    """The app behind the real server; gives a function path -> (status, headers, body)."""
    config = uvicorn.Config(filled.app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def get(path):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        body = answer.read().decode("utf-8", "replace")
        connection.close()
        return answer.status, headers, body

    yield get
    server.should_exit = True
    thread.join(10)


# --- a series of several volumes ----------------------------------------------------------------


def test_each_part_of_a_series_has_a_row_and_a_page_that_names_the_others(empty):
    database = empty.database
    complete_series(database, SCORED)
    found = [Part("k1", 1, "EchoTime 10", ("1",)), Part("k2", 2, HOSTILE, ("2",))]
    with database.begin() as db:
        part_table.record(db, SCORED, 1, found)
        series_table.set_protocol(db, SCORED, "t2", "k2")
        job_table.enqueue_parts(db, SCORED, 1, ["k1", "k2"], NOON)
    record_score(database, score(SCORED, subject="two", part="k2", subject_score=7.5))
    page = empty.client.get("/").text
    assert page.count(f"/series/{SCORED}?part=") == 2
    assert "volume: EchoTime 10" in page
    assert HOSTILE not in page
    one = empty.client.get(f"/series/{SCORED}").text
    assert "One of 2 volumes: <b>EchoTime 10</b>" in one
    assert f'href="/series/{SCORED}?part=k2"' in one
    two = empty.client.get(f"/series/{SCORED}?part=k2").text
    assert "7.5" in two
    assert "7.5" not in one
    assert f'href="/series/{SCORED}?part=k1">EchoTime 10</a>' in two
    assert HOSTILE not in one + two
    for part in ("k3", "../k2", "%00", HOSTILE):
        assert empty.client.get(f"/series/{SCORED}", params={"part": part}).status_code == 404


def test_the_picture_of_a_part_is_its_own(empty):
    complete_series(empty.database, SCORED)
    with empty.database.begin() as db:
        part_table.record(db, SCORED, 1, [Part("k1", 1, "EchoTime 10", ("1",))])
    entry = score(SCORED, part="k1")
    record_score(empty.database, entry)
    empty.picture.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(empty.picture)
    assert empty.client.get(f"/series/{SCORED}/summary.png").status_code == 404
    answer = empty.client.get(f"/series/{SCORED}/summary.png?part=k1")
    assert answer.content == empty.picture.read_bytes()
