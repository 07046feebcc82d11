"""A multi-frame image of several volumes: its frames are parted, and named as they are numbered."""

from itertools import product

import numpy as np
import pydicom
import pytest
from pydicom import uid

from dicom_node import clock, volume
from dicom_node.errors import IrregularGeometry
from dicom_node.header import number
from dicom_node.splitting import parts_of
from dicom_node.store import part_table, result_table
from dicom_node.worker import Worker
from tests.make import ledgers, lines
from tests.make.instances import Geometry, interleaved, make_enhanced, write
from tests.make.iod import dciodvfy, faults

SMALL = Geometry(rows=32, columns=40, n_slices=8, pixel_spacing=(0.8, 1.3), slice_spacing=2.5)
ORDERS = {
    "slice by slice": [(echo, index) for index, echo in product(range(8), range(2))],
    "echo by echo": list(product(range(2), range(8))),
    "the second backwards": [*((0, n) for n in range(8)), *((1, n) for n in reversed(range(8)))],
}


def echo(time):
    return {"MREchoSequence": {"EffectiveEchoTime": time}}


def pixels(seed, geometry=SMALL):
    shape = geometry.n_slices, geometry.rows, geometry.columns
    return np.random.default_rng(seed).integers(0, 1000, shape)


def two_echoes(order):
    return interleaved(SMALL, [(echo(10.0), pixels(1)), (echo(80.0), pixels(2))], order)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize(
    "syntax",
    [
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.RLELossless,
        uid.JPEG2000Lossless,
        uid.DeflatedExplicitVRLittleEndian,
    ],
    ids=lambda syntax: syntax.name,
)
def test_each_echo_of_an_enhanced_image_is_one_volume(tmp_path, order, syntax):
    path = write(two_echoes(order), tmp_path / "image.dcm", syntax)
    found = parts_of([path])
    assert [part.name for part in found] == ["EchoTime 10", "EchoTime 80"]
    for stack, part in enumerate(found):
        assert part.frames == tuple(n for n, (one, _) in enumerate(order, 1) if one == stack)
        built = volume.build([path], part.frames)
        stored = [index for one, index in order if one == stack]
        np.testing.assert_array_equal(built.voxels, pixels(stack + 1)[stored])
        at = built.affine @ [0, 0, 0, 1]
        np.testing.assert_allclose(at[:3], np.asarray(SMALL.position(stored[0]), float))
        assert number(built.headers[0], "EffectiveEchoTime") == (10, 80)[stack]


def test_an_enhanced_image_of_one_volume_is_no_part(tmp_path):
    path = write(make_enhanced("MR", SMALL), tmp_path / "image.dcm")
    assert parts_of([path]) == ()


def test_frames_that_nothing_tells_apart_are_refused_as_before(tmp_path):
    order = list(product(range(2), range(8)))
    ds = interleaved(SMALL, [({}, pixels(1)), ({}, pixels(2))], order)
    path = write(ds, tmp_path / "image.dcm")
    assert parts_of([path]) == ()
    with pytest.raises(IrregularGeometry, match=r"8 of 16.*no attribute says what differs"):
        volume.build([path])


def test_images_of_several_volumes_each_are_parted_by_image_and_by_frame(tmp_path):
    files = []
    for time in (1, 2):
        ds = two_echoes(ORDERS["slice by slice"])
        ds.SOPInstanceUID = f"1.2.3.{time}"
        ds.TemporalPositionIdentifier = time
        files.append(write(ds, tmp_path / f"{time}.dcm"))
    found = parts_of(files)
    assert sorted(part.name for part in found) == [
        f"TemporalPosition {time}, EchoTime {echo}" for time in (1, 2) for echo in (10, 80)
    ]
    assert len({part.key for part in found}) == 4


def test_one_image_in_several_instances_is_not_parted(tmp_path):
    files = []
    for place in (1, 2):
        ds = make_enhanced("MR", SMALL)
        ds.SOPInstanceUID, ds.ConcatenationUID = f"1.2.3.{place}", "1.2.3"
        ds.AcquisitionNumber = place
        files.append(write(ds, tmp_path / f"{place}.dcm"))
    assert parts_of(files) == ()


# -- on the line ---------------------------------------------------------------------------------


@pytest.fixture
def line(tmp_path, tmp_path_factory):
    with ledgers.ledger(tmp_path) as database:
        yield lines.make_line(
            database,
            tmp_path,
            lines.tiny_weights(tmp_path_factory.mktemp("weights")),
            several=(
                {"name": "pd", "match": {"modality": "MR", "echo_time_ms": [5, 30]}},
                {"name": "t2", "match": {"modality": "MR", "echo_time_ms": [60, 100]}},
            ),
            protocol={"finding_min_volume_ml": 0.0, "finding_threshold": 0.5},
            results={
                "secondary_capture": True,
                "presentation_state": True,
                "parametric_map": True,
                "key_objects": True,
            },
        )


def frame_references(ds, source):
    """(sequence, numbers) of each reference to the source image."""
    for element in ds:
        if element.VR != "SQ":
            continue
        for item in element.value:
            if item.get("ReferencedSOPInstanceUID") == source:
                yield element.keyword, np.atleast_1d(item.get("ReferencedFrameNumber", [])).tolist()
            yield from frame_references(item, source)


def test_results_name_the_frames_of_their_own_volume(line):
    n_slices = lines.GEOMETRY.n_slices
    order = [(stack, index) for index, stack in product(range(n_slices), range(2))]
    for seed in range(4):
        stacks = [(echo(10.0), lines.head(seed)), (echo(80.0), lines.head(seed + 10))]
        ds = interleaved(lines.GEOMETRY, stacks, order, seed=seed)
        series = lines.receive(line, [ds])
    working = Worker(line, "one")
    while working.run_one():
        pass
    with line.database.read() as db:
        found = part_table.parts(db, series, 1)
        assert len(result_table.due_deliveries(db, "pacs", clock.now(), 1000)) > 8
    uids = set()
    for part in found:
        with line.database.read() as db:
            score_id, _ = result_table.get_score(db, series, 1, part.key)
            items = result_table.results_of(db, score_id)
        assert {item.kind for item in items} == {"SEG", "SR", "PM", "PR", "SC", "KO"}
        for item in items:
            path = line.folders.results / item.file_name
            made = pydicom.dcmread(path)
            assert made.SOPInstanceUID not in uids
            uids.add(made.SOPInstanceUID)
            # the tables of types do not know the branches of a report's content
            check = dciodvfy if item.kind in ("SR", "KO") else faults
            assert check(path) == []
            named = list(frame_references(made, ds.SOPInstanceUID))
            images = [n for kind, n in named if kind in ("SourceImageSequence",)]
            images += [n for kind, n in named if kind == "ReferencedImageSequence"]
            assert images or item.kind in ("SR", "KO")
            assert all(set(numbers) <= set(part.frames) for numbers in images)
            assert all(images)
            if item.kind in ("SEG", "PM"):
                check_places(made, ds)


def check_places(made, source):
    """Each frame lies where the source's frame lies that it names."""
    groups = source.PerFrameFunctionalGroupsSequence
    for frame in made.PerFrameFunctionalGroupsSequence:
        (derivation,) = frame.DerivationImageSequence
        (named,) = derivation.SourceImageSequence
        of_source = groups[int(named.ReferencedFrameNumber) - 1].PlanePositionSequence[0]
        of_frame = frame.PlanePositionSequence[0]
        np.testing.assert_allclose(
            np.asarray(of_frame.ImagePositionPatient, float),
            np.asarray(of_source.ImagePositionPatient, float),
        )
