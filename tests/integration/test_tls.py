"""TLS against real DCMTK: who is let in, who is not, and that nobody keeps others waiting."""

import re
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest

from dicom_node import config
from dicom_node.association import tls
from dicom_node.association.acceptor import Acceptor, AcceptorSettings
from dicom_node.association.requestor import Peer, echo, send
from dicom_node.errors import AssociationRefused, ConfigError, NodeError, PartFailed
from dicom_node.inbox import Inbox
from dicom_node.network_config import PeerTls, ReceiverTls
from tests.make.certificates import authority
from tests.make.instances import make_instance, write

STORESCU, STORESCP, ECHOSCU = (f"/usr/bin/{name}" for name in ("storescu", "storescp", "echoscu"))
#: connections that failed are forgotten by the library, not closed
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


class Recorder:
    """The node behind the acceptor."""

    def __init__(self, inbox):
        self.inbox = inbox
        self.filed, self.refusals = [], []

    def association_opened(self, _calling_ae_title, _peer_host):
        return 1

    def association_closed(self, _association_id):
        pass

    def instance_received(self, received):
        self.filed.append(self.inbox.file_instance(received))

    def refused(self, calling_ae_title, peer_host, reason):
        self.refusals.append((calling_ae_title, peer_host, reason))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The authority that both sides trust."""
    return authority(tmp_path_factory.mktemp("certificates") / "site")


@pytest.fixture(scope="module")
def pairs(site):
    """(certificate, key) of the node and of its peer."""
    return {name: site.sign(name) for name in ("node", "peer")}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return authority(tmp_path_factory.mktemp("certificates") / "stranger")


@pytest.fixture
def recorder(tmp_path):
    return Recorder(Inbox(tmp_path / "inbox", 0))


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def receiver_tls(site, pair, **changes):
    certificate, key = pair
    values = {"port": free_port(), "certificate": certificate, "key": key, "ca": site.certificate}
    return ReceiverTls(**(values | changes))


@contextmanager
def receiving(recorder, settings, port=None):
    acceptor = Acceptor(
        AcceptorSettings("NODE", "127.0.0.1", port, 10, 10.0, (), False, settings), recorder
    )
    acceptor.start()
    try:
        yield acceptor
    finally:
        acceptor.stop()


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def tool(*arguments):
    command = [str(argument) for argument in arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def trusting(where):
    return "+cf", where.certificate


def with_pair(pair):
    certificate, key = pair
    return "+tls", key, certificate


# -- receiving ------------------------------------------------------------------------------------


def test_a_sender_with_a_certificate_stores_over_tls(recorder, site, pairs, tmp_path):
    path = write(make_instance(), tmp_path / "out.dcm")
    with receiving(recorder, receiver_tls(site, pairs["node"])) as acceptor:
        assert acceptor.port is None
        port = acceptor._settings.tls.port
        done = tool(STORESCU, *with_pair(pairs["peer"]), *trusting(site), "127.0.0.1", port, path)
    assert done.returncode == 0, done.stderr
    assert [f.sop_instance_uid for f in recorder.filed] == [make_instance().SOPInstanceUID]
    assert recorder.refusals == []


def test_a_sender_without_a_certificate_or_with_a_stranger_s_is_refused(
    recorder, site, pairs, stranger, tmp_path
):
    path = write(make_instance(), tmp_path / "out.dcm")
    settings = receiver_tls(site, pairs["node"])
    with receiving(recorder, settings):
        none = tool(STORESCU, "+tla", *trusting(site), "127.0.0.1", settings.port, path)
        until(lambda: len(recorder.refusals) == 1)
        foreign = stranger.sign("foreigner")
        other = tool(
            *(STORESCU, *with_pair(foreign), *trusting(site)), "127.0.0.1", settings.port, path
        )
        until(lambda: len(recorder.refusals) == 2)
    assert none.returncode != 0
    assert other.returncode != 0
    assert recorder.filed == []
    assert "peer did not return a certificate" in recorder.refusals[0][2]
    assert "certificate refused" in recorder.refusals[1][2]
    assert {host for _, host, _ in recorder.refusals} == {"127.0.0.1"}


def test_where_none_is_demanded_a_sender_needs_no_certificate(recorder, site, pairs, tmp_path):
    path = write(make_instance(), tmp_path / "out.dcm")
    settings = receiver_tls(site, pairs["node"], ca=None, client_certificate="none")
    with receiving(recorder, settings):
        done = tool(STORESCU, "+tla", *trusting(site), "127.0.0.1", settings.port, path)
    assert done.returncode == 0, done.stderr
    assert len(recorder.filed) == 1


def test_a_plain_port_stays_open_beside_it_and_plain_is_refused_on_the_other(recorder, site, pairs):
    settings = receiver_tls(site, pairs["node"])
    with receiving(recorder, settings, port=0) as acceptor:
        assert tool(ECHOSCU, "127.0.0.1", acceptor.port).returncode == 0
        assert tool(ECHOSCU, "127.0.0.1", settings.port).returncode != 0
        until(lambda: recorder.refusals)
    assert "no TLS connection" in recorder.refusals[0][2]


def test_silent_connections_keep_nobody_out(recorder, site, pairs):
    settings = receiver_tls(site, pairs["node"])
    with receiving(recorder, settings):
        silent = [socket.create_connection(("127.0.0.1", settings.port)) for _ in range(3)]
        done = tool(ECHOSCU, *with_pair(pairs["peer"]), *trusting(site), "127.0.0.1", settings.port)
        assert done.returncode == 0, done.stderr
        # and they are dropped by themselves, without a line in the ledger
        for one in silent:
            one.settimeout(60)
            assert one.recv(1) == b""
            one.close()
    assert recorder.refusals == []


def test_a_taken_tls_port_names_its_key_and_leaves_no_port_open(recorder, site, pairs):
    settings = receiver_tls(site, pairs["node"])
    plain = free_port()
    with (
        receiving(recorder, settings),
        pytest.raises(PartFailed, match=r"receiver\.tls\.port"),
        receiving(recorder, settings, plain),
    ):
        pass
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", plain)) != 0


def test_the_node_calls_itself_over_tls(recorder, site, pairs):
    settings = receiver_tls(site, pairs["node"])
    with receiving(recorder, settings):
        echo(Peer("own", "NODE", "127.0.0.1", settings.port, tls.own_port(settings)), "NODE", 30)


# -- sending --------------------------------------------------------------------------------------


@contextmanager
def storescp(folder, site, pair, *options):
    folder.mkdir()
    port = free_port()
    command = [STORESCP, *with_pair(pair), *trusting(site), "-od", folder, *options, port]
    with subprocess.Popen([str(part) for part in command]) as process:
        try:
            until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            yield port
        finally:
            process.terminate()


def ours(site, pair=None, **changes):
    certificate, key = pair or (None, None)
    return PeerTls(ca=site.certificate, certificate=certificate, key=key, **changes)


def test_results_go_over_tls_with_our_certificate(site, pairs, tmp_path):
    path = write(make_instance(), tmp_path / "out.dcm")
    stored = []
    with storescp(tmp_path / "pacs", site, pairs["peer"]) as port:
        peer = Peer("pacs", "PACS", "127.0.0.1", port, ours(site, pairs["node"]))
        send(
            *(peer, "NODE", [path], 30),
            on_stored=lambda path, status: stored.append((path, status)),
            on_refused=lambda path, error: pytest.fail(f"{path}: {error}"),
        )
        with pytest.raises(AssociationRefused, match="TLS"):
            echo(Peer("pacs", "PACS", "127.0.0.1", port, ours(site)), "NODE", 30)
    assert stored == [(path, 0)]
    assert len(list((tmp_path / "pacs").iterdir())) == 1


def test_a_peer_that_is_not_the_one_is_not_trusted(site, pairs, stranger, tmp_path):
    with storescp(tmp_path / "pacs", site, site.sign("elsewhere", "pacs.example")) as port:

        def ask(by):
            echo(Peer("pacs", "PACS", "127.0.0.1", port, by), "NODE", 30)

        with pytest.raises(AssociationRefused, match=r"certificate refused.*IP address mismatch"):
            ask(ours(site, pairs["node"]))
        with pytest.raises(AssociationRefused, match=r"certificate refused.*self-signed"):
            ask(ours(stranger, pairs["node"], check_host_name=False))
        ask(ours(site, pairs["node"], check_host_name=False))


def test_a_plain_peer_is_told_apart(recorder, site, pairs):
    with receiving(recorder, None, port=0) as acceptor:
        peer = Peer("pacs", "NODE", "127.0.0.1", acceptor.port, ours(site, pairs["node"]))
        with pytest.raises(AssociationRefused, match="check that the port speaks TLS"):
            echo(peer, "NODE", 2)


# -- files ----------------------------------------------------------------------------------------


def node_config(folder, text):
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    return config.load(path)


KEYS = ("certificate", "key", "ca")
RECEIVER = '[receiver.tls]\ncertificate = "{}"\nkey = "{}"\nca = "{}"\n'
DESTINATION = (
    '[[destination]]\nname = "pacs"\nae_title = "P"\nhost = "h"\nport = 1\n'
    '[destination.tls]\nca = "{}"\n'
)


def test_good_files_pass_and_lie_beside_the_configuration(site, pairs, tmp_path):
    names = ("c.pem", "k.pem", "a.pem")
    for name, path in zip(names, (*pairs["node"], site.certificate), strict=True):
        (tmp_path / name).write_bytes(path.read_bytes())
    settings = node_config(
        tmp_path, RECEIVER.format("c.pem", "k.pem", "a.pem") + DESTINATION.format("a.pem")
    )
    assert settings.receiver.tls.certificate == tmp_path / "c.pem"
    tls.check(settings)


@pytest.mark.parametrize("fault", ["gone", "no PEM", "another's key"])
@pytest.mark.parametrize("which", KEYS)
def test_a_bad_file_is_named(site, pairs, tmp_path, which, fault):
    files = dict(zip(KEYS, (*pairs["node"], site.certificate), strict=True))
    if fault == "another's key":
        files["key"] = pairs["peer"][1]
        which = "key"
    else:
        files[which] = tmp_path / "bad.pem"
        if fault == "no PEM":
            files[which].write_text("no PEM")
    settings = node_config(tmp_path, RECEIVER.format(*files.values()))
    with pytest.raises(ConfigError, match=re.escape(f"{which} = {files[which]}")):
        tls.check(settings)


def test_a_bad_file_of_a_destination_is_named_with_it(tmp_path):
    settings = node_config(tmp_path, DESTINATION.format("gone.pem"))
    wanted = re.escape(f"destination pacs tls: ca = {tmp_path / 'gone.pem'}: No such file")
    with pytest.raises(ConfigError, match=wanted):
        tls.check(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[receiver]\nplain = false\n", "needs [receiver.tls]"),
        ('[receiver.tls]\ncertificate = "c"\nkey = "k"\n', "receiver.tls.ca is missing"),
        ('[receiver.tls]\nport = 11112\ncertificate = "c"\nkey = "k"\nca = "a"\n', "must differ"),
        (DESTINATION.format("a") + 'key = "k"\n', "go together"),
    ],
)
def test_sections_that_do_not_hold_together_are_refused(tmp_path, text, said):
    with pytest.raises(NodeError, match=re.escape(said)):
        node_config(tmp_path, text)
