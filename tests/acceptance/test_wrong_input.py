"""Wrong input is answered, not swallowed: the message names the thing and what to do."""

import re
import socket
import urllib.request

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from dicom_node.association.requestor import Peer, send
from dicom_node.demo.mr_series import Acquisition, make_uid, write_mr_series
from dicom_node.demo.pacs import free_ports
from tests.make.nodes import run_cli, running_node, storescu, tiny_encoder_section

CONFIG = """
[node]
data_dir = "node"
[receiver]
port = {port}
[storage]
reserve = "100 MiB"
[completion]
quiet = "1 s"
[grouping]
discover = false
[web]
port = {web_port}
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
name = "nobody"
ae_title = "NOBODY"
host = "127.0.0.1"
port = {dead_port}
retry_first = "1 s"
"""


def small_series(folder, number, *, n_slices=24, description="small", first=0):
    """A ball of texture: little data, the same code path."""
    random = np.random.default_rng(number)
    grid = np.indices((n_slices, 32, 32), dtype=float)
    centre = np.array([(n_slices - 1) / 2, 15.5, 15.5])[:, None, None, None]
    inside = (((grid - centre) / np.array([n_slices / 2, 15, 15])[:, None, None, None]) ** 2).sum(0)
    voxels = np.where(
        inside < 1, 600 + 200 * random.random(inside.shape), 5 * random.random(inside.shape)
    )
    affine = np.array([[0, 0, 4.0, -62], [0, 4.0, 0, -62], [4.0, 0, 0, -46], [0, 0, 0, 1]])
    who = Acquisition(f"SMALL{number}", f"Small^{number}", series_description=description)
    return write_mr_series(voxels, affine, folder / f"{description}{number}", who)[first:]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    port, web_port, dead_port = free_ports(3)
    text = CONFIG.format(
        port=port, web_port=web_port, dead_port=dead_port, encoder=tiny_encoder_section(folder)
    )
    with running_node(folder, text, port, web_port) as running:
        yield running


def rejected(found, text):
    return [
        job for job in found["unfinished"] if job["state"] == "rejected" and text in job["reason"]
    ]


def test_a_truncated_instance_is_refused_and_the_rest_of_the_association_survives(node, tmp_path):
    """By our own sender: DCMTK does not send a file that it cannot read to its end."""
    files = small_series(tmp_path, 50, n_slices=3, description="cut")
    files[1].write_bytes(files[1].read_bytes()[:-700])
    stored, refused = [], {}
    send(
        *(Peer("node", "DICOM_NODE", "127.0.0.1", node.port), "SCANNER", files, 10),
        on_stored=lambda path, _status: stored.append(path),
        on_refused=refused.__setitem__,
    )
    assert stored == [files[0], files[2]]
    assert refused[files[1]].status == 0xC000
    wanted = "PixelData is cut off: 2048 bytes expected, 1348 found"
    assert wanted in str(refused[files[1]])
    reasons = [r["reason"] for r in node.status()["refusals"] if r["from"] == "SCANNER"]
    assert any(wanted in reason for reason in reasons), reasons


def test_a_non_image_sop_class_is_named_and_the_sender_told(node, tmp_path):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = make_uid("pdf")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = make_uid("pdf study"), make_uid("pdf series")
    ds.PatientID, ds.PatientName, ds.Modality = "PDF", "Some^Body", "DOC"
    ds.EncapsulatedDocument, ds.MIMETypeOfEncapsulatedDocument = b"%PDF-1.4 ", "application/pdf"
    ds.save_as(tmp_path / "document.dcm", enforce_file_format=True)
    sent = storescu(node.port, [tmp_path / "document.dcm"])
    assert sent.returncode != 0

    def named(status):
        reasons = [refusal["reason"] for refusal in status["refusals"]]
        return any("Encapsulated PDF" in reason and "CT" in reason for reason in reasons)

    # the sender has its answer before the ledger has the refusal
    node.wait_for(named, "the refusal of the document", timeout=20)
    assert "Some^Body" not in node.log


def test_a_localizer_of_two_slices_is_rejected_by_name(node, tmp_path):
    sent = storescu(
        node.port, small_series(tmp_path, 51, n_slices=2, description="small localizer")
    )
    assert sent.returncode == 0
    found = node.wait_for(lambda s: rejected(s, "localizer"), "the rejection of the localizer")
    assert "2 slices" in rejected(found, "localizer")[0]["reason"]


def test_a_series_that_no_protocol_claims_says_what_did_not_match(node, tmp_path):
    storescu(node.port, small_series(tmp_path, 52, description="other"))
    found = node.wait_for(lambda s: rejected(s, "no [[protocol]]"), "the rejection")
    assert "series_description has no 'small'" in rejected(found, "no [[protocol]]")[0]["reason"]


def test_an_unreachable_destination_is_named_and_nothing_is_lost(node, tmp_path):
    for number in range(4):
        assert storescu(node.port, small_series(tmp_path, number)).returncode == 0
    found = node.wait_for(
        lambda s: s["jobs"].get("report done", 0) >= 4 and s["delivery_faults"],
        "the failed delivery",
    )
    fault = found["delivery_faults"][0]
    assert fault["destination"] == "nobody"
    assert re.search(r"NOBODY at 127\.0\.0\.1:\d+", fault["reason"])
    assert found["delivery"]["nobody queued"] >= 4
    done = run_cli("echo", "nobody", "--config", node.config)
    assert done.returncode == 1
    assert "NOBODY" in done.stdout


def test_a_late_instance_leads_to_a_new_score_and_a_re_send_to_none(node, tmp_path):
    files = small_series(tmp_path, 9)
    assert storescu(node.port, files[:-1]).returncode == 0
    node.wait_for(lambda s: s["jobs"].get("report done", 0) >= 5, "the first score")
    before = node.status()["jobs"]["report done"]
    assert storescu(node.port, files).returncode == 0
    node.wait_for(lambda s: s["jobs"].get("report done", 0) == before + 1, "the second score")
    assert storescu(node.port, files).returncode == 0
    with pytest.raises(AssertionError, match="a third score did not happen"):
        node.wait_for(
            lambda s: s["jobs"].get("report done", 0) > before + 1, "a third score", timeout=6
        )


def test_the_page_shows_the_work_and_no_patient(node):
    with urllib.request.urlopen(f"http://127.0.0.1:{node.web_port}/", timeout=10) as answer:
        page = answer.read().decode()
    assert "Research use only" in page
    assert "small" in page
    assert "Small^" not in page
    with urllib.request.urlopen(f"http://127.0.0.1:{node.web_port}/healthz", timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("text", "named", "remedy"),
    [
        ("[receiver]\nprot = 104\n", "receiver.prot", "port"),
        ('[completion]\nquiet = "fast"\n', "completion.quiet", "60 s"),
        ('[node]\nae_title = "MUCH_TOO_LONG_FOR_AN_AE"\n', "node.ae_title", "16"),
        ("[node\n", "config.toml", "line 1"),
    ],
)
def test_an_unreadable_key_names_file_key_and_remedy(tmp_path, text, named, remedy):
    (tmp_path / "config.toml").write_text(text)
    done = run_cli("check-config", "--config", tmp_path / "config.toml")
    assert done.returncode == 2
    assert "config.toml" in done.stderr
    assert named in done.stderr
    assert remedy in done.stderr


def test_a_missing_configuration_says_what_to_do(tmp_path):
    done = run_cli("serve", "--config", tmp_path / "none.toml")
    assert done.returncode == 2
    assert "config.example.toml" in done.stderr


def serve_fails(tmp_path, encoder, port=None):
    ports = free_ports(2)
    text = CONFIG.format(port=port or ports[0], web_port=ports[1], dead_port=1, encoder=encoder)
    (tmp_path / "config.toml").write_text(text)
    return run_cli(
        "serve",
        "--config",
        tmp_path / "config.toml",
        env={"DICOM_NODE_CACHE": str(tmp_path / "empty")},
    )


def test_missing_weights_stop_the_node_with_the_file_and_the_command_to_get_it(tmp_path):
    done = serve_fails(tmp_path, "")
    assert done.returncode == 1
    assert str(tmp_path / "empty") in done.stderr
    assert "dicom-node fetch-weights" in done.stderr


def test_a_missing_weights_file_of_ones_own_is_named(tmp_path):
    done = serve_fails(tmp_path, '[encoder]\nweights = "file"\nfile = "gone.safetensors"\n')
    assert done.returncode == 1
    assert "gone.safetensors" in done.stderr


def test_a_taken_port_stops_the_node_by_name(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve_fails(tmp_path, tiny_encoder_section(tmp_path), port)
    assert done.returncode == 1
    assert str(port) in done.stderr


def test_the_demo_does_not_delete_what_is_not_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run_cli("demo", "--out", tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_demo_says_when_a_folder_holds_too_few_series(tmp_path):
    (tmp_path / "own").mkdir()
    done = run_cli("demo", "--out", tmp_path / "out", "--dicom", tmp_path / "own")
    assert done.returncode == 2
    assert "0 CT or MR series" in done.stderr


def test_every_verb_is_explained_with_an_example():
    done = run_cli("--help")
    verbs = re.findall(r"^│ ([a-z][a-z-]+) ", done.stdout, re.MULTILINE)
    assert {"serve", "echo", "status", "check-config", "demo"} <= set(verbs)
    for verb in set(verbs) - {"version"}:
        assert "Example: dicom-node" in run_cli(verb, "--help").stdout
