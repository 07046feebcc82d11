"""The node as a whole: its processes, its end, and what a second run sends."""

import hashlib
import json
import sqlite3
import time

import psutil
import pytest

from dicom_node.demo.pacs import free_ports
from tests.acceptance.test_wrong_input import CONFIG, small_series
from tests.make.nodes import run_cli, running_node, storescu, tiny_encoder_section


def config_text(folder, ports):
    port, web_port, dead_port = ports
    return CONFIG.format(
        port=port, web_port=web_port, dead_port=dead_port, encoder=tiny_encoder_section(folder)
    )


def part(node, module):
    """The process of one part."""
    for child in psutil.Process(node.process.pid).children():
        if f"dicom_node.parts.{module}" in child.cmdline():
            return child
    raise AssertionError(f"no {module} runs")


def results_of(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "node" / "results").rglob("*.dcm"))
    }


def test_a_killed_worker_and_receiver_are_started_again_and_nothing_is_lost(tmp_path):
    ports = free_ports(3)
    with running_node(tmp_path, config_text(tmp_path, ports), ports[0], ports[1]) as node:
        for number in range(2):
            assert storescu(node.port, small_series(tmp_path, number)).returncode == 0
        for module in ("scorer", "receiver"):
            part(node, module).kill()
        deadline = time.monotonic() + 30
        while storescu(node.port, small_series(tmp_path, 2)).returncode != 0:
            assert time.monotonic() < deadline, "the receiver did not come back"
            time.sleep(0.5)
        assert storescu(node.port, small_series(tmp_path, 3)).returncode == 0
        found = node.wait_for(lambda s: s["jobs"].get("report done", 0) == 4, "four scores")
        assert found["received"]["instances"] == 4 * 24
        printed = run_cli("status", "--json", "--config", node.config)
        assert json.loads(printed.stdout)["received"] == found["received"]
        assert "report" in run_cli("status", "--config", node.config).stdout


def test_the_end_leaves_no_process_behind(tmp_path):
    ports = free_ports(3)
    with running_node(tmp_path, config_text(tmp_path, ports), ports[0], ports[1]) as node:
        children = psutil.Process(node.process.pid).children(recursive=True)
        assert len(children) == 4
    assert node.process.returncode == 0
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]


def test_parts_end_when_their_supervisor_is_killed(tmp_path):
    ports = free_ports(3)
    with running_node(tmp_path, config_text(tmp_path, ports), ports[0], ports[1]) as node:
        children = psutil.Process(node.process.pid).children()
        node.process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive


def test_a_second_run_makes_the_same_objects(tmp_path):
    ports = free_ports(3)
    text = config_text(tmp_path, ports)
    with running_node(tmp_path, text, ports[0], ports[1]) as node:
        for number in range(4):
            storescu(node.port, small_series(tmp_path, number))
        node.wait_for(lambda s: s["jobs"].get("report done", 0) == 4, "four scores")
    first = results_of(tmp_path)
    assert any(name.endswith("seg.dcm") for name in first)
    with sqlite3.connect(tmp_path / "node" / "ledger.sqlite") as ledger:
        ledger.execute("update job set state = 'queued', attempts = 0 where stage = 'report'")
    ledger.close()
    for path in (tmp_path / "node" / "results").rglob("*.dcm"):
        path.unlink()
    with running_node(tmp_path, text, ports[0], ports[1]) as node:
        node.wait_for(lambda s: s["jobs"].get("report done", 0) == 4, "the second run")
        found = node.status()
    assert results_of(tmp_path) == first
    assert found["delivery"]["nobody queued"] == len(first)


def test_status_of_a_node_that_never_ran_says_so(tmp_path):
    (tmp_path / "config.toml").write_text("")
    done = run_cli("status", "--config", tmp_path / "config.toml")
    assert done.returncode == 2
    assert "never been started" in done.stderr


@pytest.mark.parametrize("words", [("ORTHANC", "DICOM_NODE"), ("head-t1", "data in")])
def test_check_config_shows_what_the_example_makes(words):
    done = run_cli("check-config", "--config", "config.example.toml")
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
