"""The doctor: a healthy setting has no fault, and each planted one is found by its own check."""

import errno
import json
import os
import shutil
import socket
import sqlite3
import threading
import time
from datetime import timedelta
from importlib import metadata

import pytest
from sqlalchemy import update

from dicom_node import clock
from dicom_node.association.collector import StorageCollector
from dicom_node.demo.pacs import free_ports
from dicom_node.doctor import clocks, disk, encoder, machine, ports
from dicom_node.doctor.all_checks import examine
from dicom_node.doctor.certificate_dates import validity
from dicom_node.doctor.checks import Check, Verdict, ok
from dicom_node.doctor.running import run_checks
from dicom_node.errors import NodeError
from dicom_node.folders import Folders
from dicom_node.jobs import DeliveryState, JobState, Stage
from dicom_node.store import result_table
from dicom_node.store.tables import job
from dicom_node.wheel_files import sha256_of
from tests.make import console
from tests.make.certificates import authority
from tests.make.ledgers import enqueue, ledger, record_score, result_object, score

TEXT = """
[node]
ae_title = "NODE"
data_dir = "data"
[storage]
reserve = "1 MiB"
[receiver]
port = {port}
allowed_calling_ae_titles = ["SCANNER"]
[receiver.tls]
port = {tls_port}
certificate = "certificates/node.pem"
key = "certificates/node.key"
ca = "certificates/ca.pem"
[web]
port = {web_port}
[scoring]
threads = 1
[encoder]
weights = "file"
file = "encoder.safetensors"
sha256 = "{sha256}"
[[protocol]]
name = "brain"
[protocol.match]
modality = "MR"
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs_port}
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Certificates that are valid for a year, made once."""
    made = authority(tmp_path_factory.mktemp("made") / "certificates", days=365)
    made.sign("node", days=365)
    return made.folder


@pytest.fixture
def site(tmp_path, certificates, monkeypatch):
    """A folder in which nothing is wrong: configuration, ledger, weights, certificates, a PACS."""
    monkeypatch.setattr(clocks, "_answer", lambda command: "yes" if "timed" in command[0] else "")
    shutil.copytree(certificates, tmp_path / "certificates")
    (tmp_path / "encoder.safetensors").write_bytes(b"weights")
    numbers = free_ports(4)
    values = dict(zip(("port", "tls_port", "web_port", "pacs_port"), numbers, strict=True))
    values["sha256"] = sha256_of(tmp_path / "encoder.safetensors")
    (tmp_path / "config.toml").write_text(TEXT.format(**values), "utf-8")
    folders = Folders(tmp_path / "data")
    folders.create()
    pacs = StorageCollector("PACS", values["pacs_port"], tmp_path / "pacs")
    pacs.start()
    with ledger(folders.root) as database:
        folders.database.chmod(0o600)
        yield Site(tmp_path, database, values)
    pacs.stop()


class Site:
    def __init__(self, folder, database, values):
        self.folder, self.database, self.values = folder, database, values
        self.data = folder / "data"

    def change(self, old, new):
        path = self.folder / "config.toml"
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), "utf-8")

    def examined(self):
        return {one.name: one.said for one in examine(self.folder / "config.toml")}

    def failed(self):
        found = self.examined()
        return {name: said for name, said in found.items() if said.verdict is Verdict.FAILED}


def test_a_healthy_setting_has_no_fault(site):
    found = site.examined()
    assert site.failed() == {}
    assert len(found) > 18
    assert found["TLS receiver.tls"].text.startswith("valid until")


# -- faults, one at a time ---------------------------------------------------------------------


def disk_full(site, _monkeypatch):
    site.change('"1 MiB"', '"900000 GiB"')


def data_readable_by_others(site, _monkeypatch):
    site.data.chmod(0o755)


def ledger_readable_by_others(site, _monkeypatch):
    (site.data / "ledger.sqlite").chmod(0o644)


def data_not_writable(_site, monkeypatch):
    def refuse(_target, *_chunks):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(disk.durable, "write", refuse)


def too_little_memory(site, monkeypatch):
    monkeypatch.setattr(machine, "total_bytes", lambda: 4 * 2**30)
    site.change("threads = 1", "threads = 1\nworkers = 3")
    monkeypatch.setattr(encoder.os, "sched_getaffinity", lambda _pid: set(range(8)))


def too_many_threads(site, monkeypatch):
    site.change("threads = 1", "threads = 4")
    monkeypatch.setattr(encoder.os, "sched_getaffinity", lambda _pid: {0, 1})


def package_too_old(_site, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "2.4.0" if n == "pydicom" else real(n))


def package_missing(_site, monkeypatch):
    real = metadata.version

    def version(name):
        if name.lower() == "alembic":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


def ledger_of_a_newer_version(site, _monkeypatch):
    with sqlite3.connect(site.data / "ledger.sqlite") as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.close()


def ledger_of_an_older_version(site, _monkeypatch):
    with sqlite3.connect(site.data / "ledger.sqlite") as db:
        db.execute("UPDATE alembic_version SET version_num = '0002'")
    db.close()


def weights_gone(site, _monkeypatch):
    (site.folder / "encoder.safetensors").unlink()


def weights_damaged(site, _monkeypatch):
    (site.folder / "encoder.safetensors").write_bytes(b"weighty")


def clock_behind_the_ledger(site, _monkeypatch):
    record_score(site.database, score(scored=clock.now() + timedelta(days=40)))


def clock_behind_the_files(site, _monkeypatch):
    later = time.time() + 86400
    os.utime(site.folder / "config.toml", (later, later))


def clock_not_synchronised(_site, monkeypatch):
    monkeypatch.setattr(clocks, "_answer", lambda command: "no" if "timed" in command[0] else "")


def time_zone_of_no_place(_site, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Atlantis")


def bind_address_of_another_machine(site, _monkeypatch):
    site.change("[receiver]\n", '[receiver]\nbind = "192.0.2.1"\n')
    # both ports of the receiver are bound to it: only one of them shall be the fault
    site.change("port = {tls_port}".format(**site.values), "port = 2762")
    without_tls(site)


def without_tls(site):
    path = site.folder / "config.toml"
    head, rest = path.read_text("utf-8").split("[receiver.tls]")
    path.write_text(head + "[web]" + rest.split("[web]")[1], "utf-8")


def certificate_about_to_expire(site, _monkeypatch):
    made = authority(site.folder / "short", days=365)
    certificate, key = made.sign("node", days=3)
    shutil.copy(certificate, site.folder / "certificates/node.pem")
    shutil.copy(key, site.folder / "certificates/node.key")


def certificate_of_another_key(site, _monkeypatch):
    _, key = authority(site.folder / "other", days=365).sign("node", days=365)
    shutil.copy(key, site.folder / "certificates/node.key")


def authorities_gone(site, _monkeypatch):
    (site.folder / "certificates/ca.pem").unlink()


def key_readable_by_others(site, _monkeypatch):
    (site.folder / "certificates/node.key").chmod(0o644)


def destination_down(site, _monkeypatch):
    site.change(
        'name = "pacs"', f'name = "gone"\nport = {free_ports(1)[0]}\n[[destination]]\nname = "pacs"'
    )
    site.change('name = "gone"', 'name = "gone"\nae_title = "GONE"\nhost = "127.0.0.1"')


def web_destination_down(site, _monkeypatch):
    path = site.folder / "config.toml"
    url = f"http://127.0.0.1:{free_ports(1)[0]}/dicom-web"
    section = f'[[web_destination]]\nname = "archive"\nurl = "{url}"\n'
    path.write_text(path.read_text("utf-8") + section, "utf-8")


def template_gone(site, _monkeypatch):
    site.change(
        'name = "brain"', 'name = "brain"\nalignment = "rigid"\ntemplate = "template.nii.gz"'
    )


def template_of_nonsense(site, monkeypatch):
    template_gone(site, monkeypatch)
    (site.folder / "template.nii.gz").write_bytes(b"nonsense")


def an_object_set_aside(site, _monkeypatch):
    score_id = record_score(site.database, score())
    with site.database.begin() as db:
        made = result_object(1, score_id)
        result_table.record_results(db, score_id, [], [made], ["pacs"], clock.now())
        result_table.settle_delivery(
            db, "pacs", [made.sop_instance_uid], DeliveryState.DEAD, clock.now()
        )


def a_job_failed(site, _monkeypatch):
    number = enqueue(site.database, "1.2.1", Stage.SCORE)
    with site.database.begin() as db:
        db.execute(update(job).where(job.c.id == number).values(state=JobState.FAILED.value))


def configuration_wrong(site, _monkeypatch):
    site.change("threads = 1", "treads = 1")


FAULTS = [
    (disk_full, "disk space", "storage.reserve"),
    (data_readable_by_others, "disk permissions", "chmod 0700"),
    (ledger_readable_by_others, "disk permissions", "chmod 0600"),
    (data_not_writable, "disk write", "mounted for writing"),
    (too_little_memory, "memory", "scoring.workers = 1"),
    (too_many_threads, "torch threads", "scoring.threads = 2"),
    (package_too_old, "package versions", "pip install"),
    (package_missing, "package versions", "pip install"),
    (ledger_of_a_newer_version, "ledger revision", "newer"),
    (ledger_of_an_older_version, "ledger revision", "Restart the node"),
    (weights_gone, "encoder weights", "encoder.file"),
    (weights_damaged, "encoder weights", "encoder.sha256"),
    (clock_behind_the_ledger, "clock against ledger", "NTP"),
    (clock_behind_the_files, "clock against files", "NTP"),
    (clock_not_synchronised, "clock synchronised", "NTP"),
    (time_zone_of_no_place, "time zone", "Set TZ"),
    (bind_address_of_another_machine, "port receiver", "receiver.bind"),
    (certificate_about_to_expire, "TLS receiver.tls", "new one signed"),
    (certificate_of_another_key, "TLS receiver.tls", "of that certificate"),
    (authorities_gone, "TLS receiver.tls", "readable"),
    (key_readable_by_others, "TLS receiver.tls", "chmod 0600"),
    (destination_down, "destination gone", "host, port and AE title"),
    (web_destination_down, "web_destination archive", "url"),
    (template_gone, "template brain", "NIfTI"),
    (template_of_nonsense, "template brain", "NIfTI"),
    (an_object_set_aside, "dead letters", "dicom-node retry"),
    (a_job_failed, "failed jobs", "dicom-node retry"),
    (configuration_wrong, "configuration", "check-config"),
]


# pynetdicom leaves the socket of a refused connection to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("plant", "check", "remedy"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_a_planted_fault_fails_its_check_alone_and_the_remedy_is_named(
    site, monkeypatch, plant, check, remedy
):
    plant(site, monkeypatch)
    found = site.failed()
    assert list(found) == [check], found
    assert remedy in found[check].remedy
    assert found[check].remedy.endswith((".", "retry")) or "Run: chmod" in found[check].remedy


def test_a_taken_port_is_a_fault_and_the_key_is_named(site):
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", site.values["web_port"]))
        squatter.listen()
        found = site.failed()
    assert list(found) == ["port page"]
    assert "another program" in found["port page"].text
    assert "web.port" in found["port page"].remedy


def test_a_port_that_our_own_node_holds_is_no_fault():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        of = ports.Port("receiver.port", "receiver.bind", "127.0.0.1", own.getsockname()[1])
        assert ports.port(of, 4711, lambda: True).verdict is Verdict.OK
        assert ports.port(of, 4711, lambda: False).verdict is Verdict.FAILED
        assert ports.port(of, None, lambda: True).verdict is Verdict.FAILED
    # the node runs and does not listen where the configuration says
    assert ports.port(of, 4711, lambda: True).verdict is Verdict.FAILED


def test_clocks_are_compared_with_a_dicomweb_server_where_nothing_else_tells(site, monkeypatch):
    monkeypatch.setattr(clocks, "_answer", lambda _command: "")
    web_destination_down(site, monkeypatch)
    monkeypatch.setattr(
        clocks.dicomweb, "server_time", lambda _peer, _s: clock.now() - timedelta(minutes=5)
    )
    found = site.failed()
    assert set(found) == {"clock synchronised", "web_destination archive"}
    monkeypatch.setattr(clocks.dicomweb, "server_time", lambda _peer, _s: clock.now())
    assert set(site.failed()) == {"web_destination archive"}


# -- how checks are run ------------------------------------------------------------------------


def test_a_check_that_raises_or_hangs_costs_the_others_nothing():
    never = threading.Event()

    def raises():
        raise RuntimeError("boom")

    def refuses():
        raise NodeError("the reason")

    def hangs():
        never.wait(60)
        return ok("")

    checks = [
        Check("a", "raises", raises),
        Check("a", "refuses", refuses, remedy="Do this."),
        Check("a", "hangs", hangs, limit_s=0.3),
        Check("a", "fine", lambda: ok("fine")),
    ]
    started = time.monotonic()
    found = run_checks(checks)
    never.set()
    assert time.monotonic() - started < 20
    assert [one.name for one in found] == ["raises", "refuses", "hangs", "fine"]
    assert [one.said.verdict.value for one in found] == ["failed", "failed", "failed", "ok"]
    assert "boom" in found[0].said.text
    assert (found[1].said.text, found[1].said.remedy) == ("the reason", "Do this.")
    assert "no answer within 0.3 s" in found[2].said.text
    assert all(one.said.remedy for one in found[:3])


def test_a_validity_is_read_from_what_openssl_made(certificates):
    found = [validity(der) for der in ports.ders((certificates / "node.pem").read_text())]
    assert len(found) == 1
    assert timedelta(days=364) < found[0].until - found[0].since < timedelta(days=366)


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x82\xff\xff", b"\x02\x01\x01", b"\x30\x00"])
def test_what_is_no_certificate_has_no_validity(der):
    with pytest.raises(ValueError, match="certificate"):
        validity(der)


# -- the verb ----------------------------------------------------------------------------------


def test_the_verb_prints_a_table_and_json_and_ends_with_1_on_a_fault(site, monkeypatch, capsys):
    call = console.runner(monkeypatch, capsys, site.folder, "doctor")
    status, said, _ = call()
    assert status == 0
    assert "Nothing keeps the node from working." in said
    site.data.chmod(0o755)
    status, said, _ = call()
    assert status == 1
    assert "Run: chmod 0700" in said
    status, said, _ = call("--json")
    found = json.loads(said)
    assert status == 1
    assert found["healthy"] is False
    faults = [one["name"] for one in found["checks"] if one["verdict"] == "failed"]
    assert f"Run: chmod 0700 {site.data}" in said
    assert faults == ["disk permissions"]


def test_a_missing_configuration_is_a_fault_with_a_remedy(tmp_path, monkeypatch, capsys):
    call = console.runner(monkeypatch, capsys, tmp_path, "doctor")
    status, said, _ = call("--json")
    assert status == 1
    assert "no such file" in json.loads(said)["checks"][0]["text"]
