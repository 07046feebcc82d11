"""STOW-RS: to a real Orthanc, and to servers that say no in every way."""

import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import certifi
import pytest

from dicom_node import clock, config, dicomweb
from dicom_node.association import tls
from dicom_node.delivery import Lane
from dicom_node.demo.pacs import find_orthanc, get_json, running_orthanc
from dicom_node.dicomweb import WebPeer
from dicom_node.errors import AssociationRefused, ConfigError, FileUnreadable, StoreFailed
from dicom_node.network_config import WebDestination
from tests.make import ledgers
from tests.make.results import Source, to_bytes
from tests.unit import test_delivery

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def written(folder, *objects):
    paths = [folder / f"{number}.dcm" for number in range(len(objects))]
    for path, ds in zip(paths, objects, strict=True):
        path.write_bytes(to_bytes(ds))
    return paths


def sent(peer, paths, timeout_s=5.0):
    """What was stored, with its status, and what was refused, with its error."""
    stored, refused = [], []
    dicomweb.send(
        peer,
        paths,
        timeout_s,
        on_stored=lambda path, status: stored.append((path, status)),
        on_refused=lambda path, error: refused.append((path, error)),
    )
    return stored, refused


@contextmanager
def answering(status, body=b"", seen=None):
    """A server that answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length)
            if seen is not None:
                seen.append((self.command, self.path, dict(self.headers), content))
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET = _answer  # noqa: N815 - the library's names

        def log_message(self, *_arguments):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_orthanc_stores_every_kind_of_object_as_it_is(tmp_path):
    assert PLUGIN.exists(), "install the Debian package orthanc-dicomweb"
    (tmp_path / "pacs").mkdir()
    source = Source()
    objects = [source.segmentation(), *source.captures()[:2]]
    paths = written(tmp_path, *objects)
    program = find_orthanc()
    assert program
    with running_orthanc(program, tmp_path / "pacs", "NODE", 11112, [str(PLUGIN)]) as pacs:
        peer = WebPeer("web", f"{pacs.url}/dicom-web")
        dicomweb.reach(peer, 5.0)
        stored, refused = sent(peer, paths)
        assert (stored, refused) == ([(path, 200) for path in paths], [])
        found = [
            get_json(f"{pacs.url}/instances/{one}/simplified-tags")
            for one in get_json(f"{pacs.url}/instances")
        ]
        assert {entry["SOPInstanceUID"] for entry in found} == {ds.SOPInstanceUID for ds in objects}
        # again: it is the same instance, and no error
        assert len(sent(peer, paths)[0]) == 3
        assert len(get_json(f"{pacs.url}/instances")) == 3


def test_the_bytes_are_those_of_the_file_and_the_token_is_shown(tmp_path):
    (path,) = written(tmp_path, Source().segmentation())
    seen = []
    shown = "not a secret"
    with answering(200, b"{}", seen) as url:
        stored, _ = sent(WebPeer("web", url, shown), [path])
    assert stored == [(path, 200)]
    ((command, where, headers, content),) = seen
    assert (command, where) == ("POST", "/dicom-web/studies")
    assert headers["Authorization"] == "Bearer not a secret"
    assert path.read_bytes() in content


@pytest.mark.parametrize("status", [400, 409, 415])
def test_an_object_that_is_not_wanted_costs_the_others_nothing(tmp_path, status):
    paths = written(tmp_path, *Source().captures()[:2])
    with answering(status, b"{}") as url:
        stored, refused = sent(WebPeer("web", url), paths)
    assert stored == []
    assert [path for path, _ in refused] == paths
    assert all(isinstance(error, StoreFailed) and error.status == status for _, error in refused)


def test_an_object_among_the_failed_ones_of_a_202_is_not_stored(tmp_path):
    (path,) = written(tmp_path, Source().segmentation())
    body = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}'
    with answering(202, body) as url:
        stored, refused = sent(WebPeer("web", url), [path])
    assert stored == []
    assert "0x0110" in str(refused[0][1])


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "HTTP 500"),
        (503, "HTTP 503"),
        (401, "its token is not accepted"),
        (403, "we may not store there"),
        (404, "check its url"),
    ],
)
def test_a_server_that_fails_or_does_not_let_us_in_is_tried_again_later(tmp_path, status, said):
    paths = written(tmp_path, *Source().captures()[:2])
    seen = []
    with answering(status, b"", seen) as url, pytest.raises(AssociationRefused, match=said) as got:
        sent(WebPeer("web", url), paths)
    assert got.value.destination == "web"
    assert len(seen) == 1  # neither tried again at once, nor the next object


def test_nobody_there(tmp_path):
    (path,) = written(tmp_path, Source().segmentation())
    peer = WebPeer("web", "http://127.0.0.1:9/dicom-web")
    with pytest.raises(AssociationRefused, match=r"web \(http.*cannot be reached"):
        sent(peer, [path])
    with pytest.raises(AssociationRefused, match="cannot be reached"):
        dicomweb.reach(peer, 1.0)


def test_a_server_that_does_not_answer_in_time_counts_as_not_there(tmp_path):
    (path,) = written(tmp_path, Source().segmentation())
    silent = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_POST(self):
            silent.wait(10)

        def log_message(self, *_arguments):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        peer = WebPeer("web", f"http://127.0.0.1:{server.server_address[1]}/dicom-web")
        with pytest.raises(AssociationRefused, match="cannot be reached"):
            sent(peer, [path], timeout_s=0.5)
    finally:
        silent.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{", b'{"00081198": 5}'])
def test_an_answer_that_is_none_is_not_taken_for_one(tmp_path, body):
    paths = written(tmp_path, *Source().captures()[:2])
    with (
        answering(200, body) as url,
        pytest.raises(AssociationRefused, match=r"answered what is no|cannot be reached"),
    ):
        sent(WebPeer("web", url), paths)


def test_a_certificate_file_that_is_gone_does_not_end_the_lane(tmp_path, monkeypatch):
    """Whatever the environment says: the configured file is the one that counts."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    (path,) = written(tmp_path, Source().segmentation())
    peer = WebPeer("web", "https://127.0.0.1:9/dicom-web", ca_file=tmp_path / "ca.pem")
    with pytest.raises(AssociationRefused, match=r"cannot be asked: .*ca\.pem"):
        sent(peer, [path])


def test_a_certificate_file_that_is_not_there_is_said_at_the_start(tmp_path):
    web = '[[web_destination]]\nname = "web"\nurl = "https://h/dicom-web"\nca = "none.pem"\n'
    (tmp_path / "config.toml").write_text(web)
    with pytest.raises(ConfigError, match=r"web_destination web.* ca = .*none\.pem"):
        tls.check(config.load(tmp_path / "config.toml"))


def test_a_file_that_is_gone_costs_the_others_nothing(tmp_path):
    (path,) = written(tmp_path, Source().segmentation())
    with answering(200, b"{}") as url:
        stored, refused = sent(WebPeer("web", url), [tmp_path / "gone.dcm", path])
    assert stored == [(path, 200)]
    ((missing, error),) = refused
    assert missing.name == "gone.dcm"
    assert isinstance(error, FileUnreadable)


# -- as a destination of the node ----------------------------------------------------------------


def web_lane(database, folder, url, **changes):
    of = WebDestination(name="web", url=url, timeout="5 s", retry_first="10 s", **changes)
    return Lane(database, folder / "results", of, "NODE")


def states(database):
    return {(row.state, row.status) for row in test_delivery.rows(database, "web").values()}


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "now", lambda: ledgers.after(1.0))
    with ledgers.ledger(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, ("delivered", 200)), (409, ("dead", 409)), (503, ("queued", None))],
)
def test_a_lane_records_what_the_server_says(database, tmp_path, status, expected):
    test_delivery.outbox(database, tmp_path, 2, ("web",))
    with answering(status, b"{}") as url:
        assert web_lane(database, tmp_path, url).send_due()
    assert states(database) == {expected}


def test_a_token_that_cannot_be_read_may_be_put_right(database, tmp_path):
    test_delivery.outbox(database, tmp_path, 2, ("web",))
    token = tmp_path / "token"
    with answering(200, b"{}") as url:
        lane = web_lane(database, tmp_path, url, token_file=token)
        assert lane.send_due()
        assert states(database) == {("queued", None)}
        reasons = {row.reason for row in test_delivery.rows(database, "web").values()}
        assert all(str(token) in reason for reason in reasons)


def test_the_configuration_takes_it_and_echo_asks_it(tmp_path):
    program = str(Path(sys.executable).with_name("dicom-node"))
    with answering(200, b"[]") as url:
        text = f'[[web_destination]]\nname = "web"\nurl = "{url}"\n'
        (tmp_path / "config.toml").write_text(text)
        call = [program, "echo", "web", "--config", str(tmp_path / "config.toml")]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"web: answered ({url})\n"), done.stderr
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be reached" in done.stdout


def test_two_destinations_of_one_name_are_refused(tmp_path):
    dimse = '[[destination]]\nname = "a"\nae_title = "A"\nhost = "h"\nport = 104\n'
    web = '[[web_destination]]\nname = "a"\nurl = "http://h/dicom-web"\n'
    (tmp_path / "config.toml").write_text(dimse + web)
    with pytest.raises(ConfigError, match=r"two .*destination.* have one name"):
        config.load(tmp_path / "config.toml")
