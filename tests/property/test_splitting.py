"""Series of several volumes are parted the same whatever the order, and nothing is lost of them."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node import volume
from dicom_node.splitting import parts_of
from tests.make.instances import Geometry, make_series, write

STACK = Geometry(rows=4, columns=5, n_slices=8, slice_spacing=2.5)
#: what may tell two volumes of a series apart, with some of its values
KINDS = {
    "EchoTime": [5.0, 10.0, 80.0],
    "InversionTime": [150.0, 900.0],
    "DiffusionBValue": [0.0, 500.0, 1000.0],
    "TemporalPositionIdentifier": [1, 2, 3, 4],
    "AcquisitionNumber": [1, 2],
    "FlipAngle": [5.0, 20.0],
}


@st.composite
def several(draw):
    """Sets of attributes of two volumes or more, all different: the product of one or two kinds."""
    names = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=2, unique=True))
    made = [{}]
    for name in names:
        values = draw(st.lists(st.sampled_from(KINDS[name]), min_size=2, max_size=3, unique=True))
        made = [one | {name: value} for one in made for value in values]
    return made


@settings(max_examples=15, deadline=None)
@given(volumes=several(), data=st.data())
def test_the_parts_are_the_volumes_whatever_the_order(volumes, data):
    with tempfile.TemporaryDirectory() as folder:
        files, wanted = [], []
        for number, attributes in enumerate(volumes):
            wanted.append(set())
            for at, ds in enumerate(make_series("MR", STACK, seed=0, **attributes)):
                ds.SOPInstanceUID = f"1.2.{number + 1}.{at + 1}"
                wanted[-1].add(ds.SOPInstanceUID)
                files.append(write(ds, Path(folder) / f"{number}-{at}.dcm"))
        found = parts_of(data.draw(st.permutations(files)))
        assert found == parts_of(files)
        assert sorted(map(sorted, wanted)) == sorted(sorted(part.instances) for part in found)
        assert len({part.key for part in found}) == len({part.name for part in found})
        assert len(found) == len(volumes)
        assert [part.number for part in found] == list(range(1, len(found) + 1))
        assert not any("\\" in part.name for part in found)


@settings(max_examples=10, deadline=None)
@given(gone=st.sets(st.integers(0, 15), max_size=4))
def test_what_is_missing_of_one_volume_changes_no_other(gone):
    """The key of a part, and its slices, are its own: late instances find them again."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, time in enumerate((10.0, 80.0)):
            for at, ds in enumerate(make_series("MR", STACK, seed=0, EchoTime=time)):
                ds.SOPInstanceUID = f"1.2.{number + 1}.{at + 1}"
                files.append(write(ds, Path(folder) / f"{number}-{at}.dcm"))
        whole = parts_of(files)
        left = [path for n, path in enumerate(files) if n not in gone]
        parts = parts_of(left)
        if not parts:
            # of neither as much as a volume needs
            assert len({n // 8 for n in gone}) == 2
            return
        assert [one.key for one in parts] == [one.key for one in whole]
        for number, (before, now) in enumerate(zip(whole, parts, strict=True)):
            assert set(now.instances) <= set(before.instances)
            own = [path for path in left if path.name.startswith(f"{number}-")]
            assert len(now.instances) == len(own)


def test_a_volume_alone_is_no_part(tmp_path):
    files = [write(ds, tmp_path / f"{at}.dcm") for at, ds in enumerate(make_series("MR", STACK))]
    assert parts_of(files) == ()
    assert volume.build(files).voxels.shape == (8, 4, 5)


@pytest.mark.parametrize("broken", [b"", b"no dicom", bytes(200)])
def test_what_cannot_be_read_is_left_to_what_says_why(tmp_path, broken):
    files = [write(ds, tmp_path / f"{at}.dcm") for at, ds in enumerate(make_series("MR", STACK))]
    (tmp_path / "broken.dcm").write_bytes(broken)
    assert parts_of([*files, tmp_path / "broken.dcm"]) == ()
