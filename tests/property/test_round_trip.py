"""A point of the patient, through volume, labels and SEG, back to millimetres."""

import tempfile
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node import findings, volume
from dicom_node.objects.segmentation import make_segmentation
from tests.make.instances import Geometry, make_enhanced, make_series, write
from tests.make.results import SCORE
from tests.oracle.geometry import pixel_position

ROWS, COLUMNS, SLICES = 6, 5, 8
#: of positions written in 16 characters
ROUNDING_MM = 1e-3


@st.composite
def geometries(draw):
    """Any spacing, orientation and offset, the slices in either direction along their normal."""
    axes = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(size=(3, 3))
    rotation, _ = np.linalg.qr(axes)
    if draw(st.booleans()):  # right along the axes too, as most are
        rotation = np.eye(3)[list(draw(st.permutations(range(3))))]
    between_slices = draw(st.floats(0.5, 8)) * draw(st.sampled_from((-1, 1)))
    return Geometry(
        rows=ROWS,
        columns=COLUMNS,
        n_slices=SLICES,
        pixel_spacing=(draw(st.floats(0.2, 5)), draw(st.floats(0.2, 5))),
        slice_spacing=between_slices,
        orientation=tuple(float(v) for v in (*rotation[0], *rotation[1])),
        origin=draw(st.tuples(*[st.floats(-500, 500)] * 3)),
    )


def directions(geometry):
    """(3, 3) unit vectors from slice to slice, down a column, along a row; (3,) mm of each step."""
    right, down = np.reshape(geometry.orientation, (2, 3))
    between_rows, between_columns = geometry.pixel_spacing
    normal = np.cross(right, down) * np.sign(geometry.slice_spacing)
    steps = np.array([abs(geometry.slice_spacing), between_rows, between_columns])
    return np.stack([normal, down, right]), steps


def planted(geometry, place):
    """(x, y, z) LPS mm of a place in indices that need not be whole, by the standard's equation."""
    depth, row, column = place
    normal, steps = directions(geometry)[0][0], directions(geometry)[1]
    start = np.array(geometry.origin) + depth * steps[0] * normal
    plane = (start, geometry.orientation, geometry.pixel_spacing)
    return np.array(pixel_position(*plane, row, column))


def files_of(geometry, bright, order, folder, *, enhanced):
    """The series as files, one voxel bright, in any order of files or either one of frames."""
    values = np.zeros((SLICES, ROWS, COLUMNS), int)
    values[bright] = 1000
    if enhanced:
        frames = range(SLICES) if order[0] < order[1] else range(SLICES)[::-1]
        return [write(make_enhanced("MR", geometry, frames, volume=values), folder / "all.dcm")]
    slices = make_series("MR", geometry, values)
    return [write(slices[index], folder / f"{name}.dcm") for name, index in enumerate(order)]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    geometry=geometries(),
    order=st.permutations(range(SLICES)),
    place=st.tuples(st.floats(0, SLICES - 1), st.floats(0, ROWS - 1), st.floats(0, COLUMNS - 1)),
    enhanced=st.booleans(),
)
def test_a_planted_point_comes_back_in_the_seg_within_half_a_voxel(
    geometry, order, place, enhanced
):
    bright = tuple(int(np.floor(index + 0.5)) for index in place)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = volume.build(files_of(geometry, bright, order, folder, enhanced=enhanced))
        regions, labels = findings.locate(
            found.voxels / 100, found.affine, threshold=5.0, min_volume_ml=0.0, max_findings=2
        )
        naming = {"node_id": "n", "series_number": 9001, "series_description": "anomaly"}
        seg = make_segmentation(found.headers, labels, regions, SCORE, **naming)
        seg.save_as(folder / "seg.dcm", enforce_file_format=True)
        read = hd.seg.Segmentation.from_dataset(pydicom.dcmread(folder / "seg.dcm"))
    whole = read.get_volume(combine_segments=True)
    (world,) = whole.map_indices_to_reference(np.argwhere(whole.array == 1))
    axes, steps = directions(geometry)
    missed = np.abs(axes @ (world - planted(geometry, place)))  # (3,) mm, along each axis
    assert (missed <= steps / 2 + ROUNDING_MM).all(), missed / steps
