"""A file is whole or absent, whatever happens to its writer."""

import multiprocessing
import os
import signal
import stat
from pathlib import Path

import pytest

from dicom_node import durable


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_for_its_owner_alone(tmp_path):
    durable.write(tmp_path / "a.bin", b"one", b"two")
    assert (tmp_path / "a.bin").read_bytes() == b"onetwo"
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o600
    assert names(tmp_path) == ["a.bin"]


def test_a_failed_writer_leaves_the_old_content_and_nothing_else(tmp_path):
    durable.write(tmp_path / "a.bin", b"old")
    with pytest.raises(IsADirectoryError), durable.replacing(tmp_path / "a.bin") as partial:
        partial.write_bytes(b"half" + tmp_path.read_bytes())
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("failing", ["fsync", "fchmod"])
def test_what_cannot_be_synced_is_not_there(tmp_path, monkeypatch, failing):
    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"dicom_node.durable.os.{failing}", fail)
        with pytest.raises(OSError, match="No space left"):
            durable.write(tmp_path / "a.bin", b"one")
    assert names(tmp_path) == []


def test_data_and_name_are_synced_before_it_returns(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        durable.os,
        "fsync",
        lambda fd: events.append(str(Path(f"/proc/self/fd/{fd}").readlink())) or sync(fd),
    )
    monkeypatch.setattr(
        durable.Path, "replace", lambda path, to: events.append("rename") or replace(path, to)
    )
    durable.write(tmp_path / "a.bin", b"one")
    assert events[0].endswith(durable.PARTIAL_SUFFIX)
    assert events[1:] == ["rename", str(tmp_path)]


def _die_while_writing(path):
    with durable.replacing(path) as partial:
        partial.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_sweep_removes_what_a_killed_writer_left_and_that_alone(tmp_path):
    durable.make_folder(tmp_path / "deep" / "er")
    durable.write(tmp_path / "deep" / "er" / "kept.bin", b"whole")
    killed = multiprocessing.get_context("fork").Process(
        target=_die_while_writing, args=(tmp_path / "deep" / "er" / "b.bin",)
    )
    killed.start()
    killed.join()
    assert len(names(tmp_path / "deep" / "er")) == 2
    assert durable.sweep(tmp_path, 3600.0) == 0
    assert durable.sweep(tmp_path) == 1
    assert names(tmp_path / "deep" / "er") == ["kept.bin"]


def test_folders_are_for_the_owner_alone_and_making_twice_is_fine(tmp_path):
    for _ in range(2):
        durable.make_folder(tmp_path / "a" / "b")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
