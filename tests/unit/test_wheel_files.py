"""One file out of a wheel, through the real pip, from a folder instead of the package index."""

import hashlib
import zipfile

import pytest

from dicom_node.errors import NodeError
from dicom_node.wheel_files import WheelFile, fetch, sha256_of

CONTENT = b"one file in a wheel"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
WANTED = WheelFile("toy-wheel==1.0", "toy_wheel/data/one.bin", DIGEST)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    _make_wheel(folder)
    return folder


def _make_wheel(folder):
    info = "toy_wheel-1.0.dist-info"
    with zipfile.ZipFile(folder / "toy_wheel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_wheel/data/one.bin", CONTENT)
        # a dependency that no index has: it must not be asked for
        metadata = "Metadata-Version: 2.1\nName: toy-wheel\nVersion: 1.0\nRequires-Dist: no-such\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.usefixtures("index")
def test_a_file_is_fetched_without_the_dependencies_of_its_wheel(tmp_path):
    target = tmp_path / "deep" / "one.bin"
    assert fetch(WANTED, target) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_is_there_needs_no_index(index, tmp_path):
    target = tmp_path / "one.bin"
    target.write_bytes(CONTENT)
    next(index.iterdir()).unlink()
    assert fetch(WANTED, target) == target


@pytest.mark.usefixtures("index")
def test_a_damaged_file_is_fetched_again(tmp_path):
    target = tmp_path / "one.bin"
    target.write_bytes(CONTENT[:5])
    fetch(WANTED, target)
    assert sha256_of(target) == DIGEST


@pytest.mark.usefixtures("index")
def test_another_digest_is_refused_with_both_named_and_nothing_left(tmp_path):
    target = tmp_path / "cache" / "one.bin"
    with pytest.raises(NodeError) as caught:
        fetch(WheelFile(WANTED.requirement, WANTED.member, "0" * 64), target)
    for part in (WANTED.requirement, WANTED.member, DIGEST, "0" * 64):
        assert part in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_without_the_wheel_the_message_says_what_and_what_to_do(index, tmp_path):
    next(index.iterdir()).unlink()
    with pytest.raises(NodeError, match="DICOM_NODE_CACHE") as caught:
        fetch(WANTED, tmp_path / "one.bin")
    assert WANTED.requirement in str(caught.value)
    assert WANTED.member in str(caught.value)
    assert not (tmp_path / "one.bin").exists()


@pytest.mark.usefixtures("index")
def test_a_wheel_without_the_member_is_named(tmp_path):
    with pytest.raises(NodeError, match=r"toy_wheel-1\.0.*does not hold toy_wheel/two\.bin"):
        fetch(WheelFile(WANTED.requirement, "toy_wheel/two.bin", DIGEST), tmp_path / "two.bin")


def test_a_broken_wheel_is_a_node_error(index, tmp_path):
    wheel = next(index.iterdir())
    wheel.write_bytes(wheel.read_bytes()[:100])
    with pytest.raises(NodeError, match=r"toy-wheel==1\.0|toy_wheel-1\.0"):
        fetch(WANTED, tmp_path / "one.bin")
