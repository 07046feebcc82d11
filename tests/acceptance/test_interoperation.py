"""A whole node and a real Orthanc over TLS, in both directions: what each sends and is told."""

import json
import time

import pytest

from dicom_node.demo.pacs import free_ports, get_bytes, get_json, running_orthanc
from dicom_node.network_config import PeerTls
from tests.acceptance.test_wrong_input import small_series
from tests.make.certificates import authority
from tests.make.nodes import running_node, tiny_encoder_section

ORTHANC = "/usr/sbin/Orthanc"
N_SERIES, N_SLICES = 4, 24
NO_SUCH_INSTANCE = 0x0112

CONFIG = """
[node]
data_dir = "node"
[receiver]
plain = false
[receiver.tls]
port = {port}
certificate = "{certificate}"
key = "{key}"
ca = "{ca}"
[storage]
reserve = "100 MiB"
[completion]
quiet = "1 s"
[grouping]
discover = false
[web]
port = {web_port}
[results]
secondary_capture_slices = "findings"
parametric_map = true
presentation_state = true
key_objects = true
{encoder}
[[protocol]]
name = "small"
mode = "live"
min_reference = 3
spacing_mm = 4.0
extent_mm = [128.0, 128.0, 128.0]
finding_threshold = 1.0
[protocol.match]
modality = "MR"
series_description = "small"
[[destination]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {pacs_port}
retry_first = "1 s"
commitment = true
verify = true
[destination.tls]
ca = "{ca}"
certificate = "{certificate}"
key = "{key}"
"""


def orthanc_tls(pair, ca, node_port):
    """Orthanc's settings: it listens over TLS alone, demands a certificate, and has one."""
    certificate, key = map(str, pair)
    return {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": certificate,
        "DicomTlsPrivateKey": key,
        "DicomTlsTrustedCertificates": str(ca),
        "DicomTlsRemoteCertificateRequired": True,
        "DicomModalities": {
            "node": {
                "AET": "DICOM_NODE",
                "Host": "127.0.0.1",
                "Port": node_port,
                "UseDicomTls": True,
            }
        },
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(node, PACS) that trust each other's certificates, and nobody else's."""
    folder = tmp_path_factory.mktemp("tls")
    site = authority(folder / "site")
    ca, (certificate, key) = site.certificate, site.sign("node")
    port, web_port = free_ports(2)
    more = orthanc_tls(site.sign("pacs"), ca, port)
    (folder / "pacs").mkdir()
    tls = PeerTls(ca=ca, certificate=certificate, key=key)
    with running_orthanc(ORTHANC, folder / "pacs", "DICOM_NODE", port, more=more) as pacs:
        text = CONFIG.format(
            port=port,
            web_port=web_port,
            pacs_port=pacs.port,
            certificate=certificate,
            key=key,
            ca=ca,
            encoder=tiny_encoder_section(folder),
        )
        with running_node(folder, text, port, web_port, tls) as node:
            yield node, pacs


def post(pacs, place, values):
    return get_json(f"{pacs.url}/{place}", json.dumps(values).encode())


def told(pacs, transaction_uid, timeout_s=60.0):
    """What Orthanc was told of a transaction that it asked for."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = get_json(f"{pacs.url}/storage-commitment/{transaction_uid}")
        if found["Status"] != "Pending":
            return found
        assert time.monotonic() < deadline, "Orthanc was not told in time"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def sent(both, tmp_path_factory):
    """Orthanc sends its studies and asks for their commitment; (studies, transaction)."""
    _, pacs = both
    folder = tmp_path_factory.mktemp("sources")
    for number in range(N_SERIES):
        for path in small_series(folder, number, n_slices=N_SLICES):
            get_bytes(f"{pacs.url}/instances", path.read_bytes())
    studies = get_json(f"{pacs.url}/studies")
    assert len(studies) == N_SERIES
    done = post(pacs, "modalities/node/store", {"Resources": studies, "StorageCommitment": True})
    assert (done["InstancesCount"], done["FailedInstancesCount"]) == (N_SERIES * N_SLICES, 0)
    return studies, done["StorageCommitmentTransactionUID"]


@pytest.fixture(scope="module")
def results(both, sent):  # noqa: ARG001 - after it
    """What became of the objects that the node made of them, once all are found again."""
    node, _ = both
    node.wait_for(
        lambda s: (
            s["jobs"].get("report done", 0) == N_SERIES
            and (of := s["ticks"].get("pacs"))
            and of["found"] == of["objects"]
        ),
        "the delivery of everything",
    )
    return node.status()["ticks"]["pacs"]


def test_orthanc_is_told_that_the_node_commits_to_what_it_sent(both, sent):
    _, pacs = both
    found = told(pacs, sent[1])
    assert (found["Status"], len(found["Success"])) == ("Success", N_SERIES * N_SLICES)
    assert found["RemoteAET"] == "DICOM_NODE"


def test_orthanc_is_told_what_the_node_does_not_hold(both, sent):
    _, pacs = both
    [here, *_] = told(pacs, sent[1])["Success"]
    unknown = here | {"SOPInstanceUID": "1.2.3.4.5"}
    asked = {"DicomInstances": [here, unknown]}
    made = post(pacs, "modalities/node/storage-commitment", asked)
    found = told(pacs, made["ID"])
    assert (found["Status"], found["Success"]) == ("Failure", [here])
    [failure] = found["Failures"]
    assert failure["SOPInstanceUID"] == unknown["SOPInstanceUID"]
    assert failure["FailureReason"] == NO_SUCH_INSTANCE


def test_what_the_node_makes_is_stored_committed_and_found_again(both, results):
    node, pacs = both
    n = results["objects"]
    assert n > N_SERIES
    assert results == {"objects": n, "stored": n, "committed": n, "found": n}
    held = get_json(f"{pacs.url}/statistics")["CountInstances"]
    assert held == N_SERIES * N_SLICES + n
    assert "refused" not in node.log
