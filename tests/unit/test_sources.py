"""Everything a scanner or PACS sends, once it is on disk: the same voxels, and results on them."""

import highdicom as hd
import numpy as np
import pydicom
import pytest

from dicom_node import findings, volume
from dicom_node.objects import overlay
from dicom_node.objects.key_objects import make_key_objects
from dicom_node.objects.measurement_report import make_report
from dicom_node.objects.occupancy_segmentation import make_occupancy_segmentation
from dicom_node.objects.parametric_map import make_parametric_map
from dicom_node.objects.presentation_state import make_presentation_states
from dicom_node.objects.secondary_capture import make_secondary_captures
from dicom_node.objects.segmentation import make_labelmap_segmentation, make_segmentation
from tests.make.encodings import MATRIX
from tests.make.iod import faults
from tests.make.results import SCORE
from tests.oracle.geometry import pixel_position

#: (depth, height, width) of what is found in every source
PLANTED = (3, 20, 12)


@pytest.fixture(scope="module", params=MATRIX, ids=str)
def source(request, tmp_path_factory):
    """A row of the matrix, the volume that was read of it."""
    folder = tmp_path_factory.mktemp("source")
    return request.param, volume.build(request.param.write(folder))


def expected(encoding, found):
    """(depth, height, width) values, and the index of the slice at each depth."""
    geometry = encoding.geometry
    if encoding.kind == "classic":
        order = [header.InstanceNumber - 1 for header in found.headers]
    else:
        order = list(range(geometry.n_slices))
    values = encoding.values()
    rescales = [encoding.rescale(index) for index in order]
    return order, np.stack(
        [
            values[index] * slope + intercept
            for index, (slope, intercept) in zip(order, rescales, strict=True)
        ]
    )


def test_a_source_loads_to_its_own_voxels_where_they_are(source):
    encoding, found = source
    order, values = expected(encoding, found)
    error = np.abs(found.voxels - values).reshape(len(values), -1).max(axis=1)
    allowed = [encoding.tolerance * encoding.rescale(index)[0] for index in order]
    assert (error <= allowed).all(), error
    geometry = encoding.geometry
    for depth, index in enumerate(order):
        plane = (geometry.position(index), geometry.orientation, geometry.pixel_spacing)
        for row, column in ((0, 0), (31, 0), (5, 39)):
            place = (found.affine @ [depth, row, column, 1.0])[:3]
            assert place == pytest.approx(pixel_position(*plane, row, column), abs=1e-6)


def results(found, modality, planted=PLANTED):
    """Objects by name; of the captures the summary and the one slice with the finding."""
    scores = np.zeros(found.voxels.shape, np.float32)
    depth, row, column = planted
    scores[depth, row, column : column + 2] = 8.0
    regions, labels = findings.locate(
        scores, found.affine, threshold=3.0, min_volume_ml=0.0, max_findings=5
    )
    naming = {"node_id": "node-1", "series_number": 9001, "series_description": "anomaly"}
    seg = make_segmentation(found.headers, labels, regions, SCORE, **naming)
    layers = (found.voxels, scores, labels, found.affine)
    page = overlay.render_summary(*layers, regions, SCORE, modality=modality)
    captures = make_secondary_captures(
        found.headers, *layers, page, SCORE, slices="findings", margin=0, **naming
    )
    of_findings = (found.headers, labels, regions, SCORE)
    page, *slices = captures
    assert len(slices) == 1
    (outlines,) = make_presentation_states(*of_findings, window=(40.0, 100.0), **naming)
    objects = {
        "seg": seg,
        "labelmap": make_labelmap_segmentation(*of_findings, **naming),
        "occupancy": make_occupancy_segmentation(found.headers, scores, *of_findings[1:], **naming),
        "report": make_report(found.headers, seg, regions, SCORE, **naming),
        "map": make_parametric_map(found.headers, scores, SCORE, **naming),
        "outlines": outlines,
        "page": page,
        "capture": slices[0],
    }
    selected = [seg, page, slices[0]]
    return {**objects, "selection": make_key_objects(found.headers, selected, SCORE, **naming)}


def written(ds, path):
    ds.save_as(path, enforce_file_format=True)
    return pydicom.dcmread(path)


def planted_voxels(found):
    """(x, y, z) of what was planted, by coordinate."""
    depth, row, column = PLANTED
    world = [found.affine @ [depth, row, column + k, 1.0] for k in (0, 1)]
    return np.sort(np.array(world)[:, :3], axis=0)


def marked_voxels(ds):
    """(x, y, z) of the voxels of segment 1, by coordinate; of shares the larger ones."""
    whole = hd.seg.Segmentation.from_dataset(ds).get_volume(segment_numbers=[1])
    world = whole.map_indices_to_reference(np.argwhere(whole.array[..., 0] > 0.5))
    return np.sort(world, axis=0)


def test_results_of_a_source_lie_on_its_voxels_and_have_no_fault(source, tmp_path):
    encoding, found = source
    made = results(found, encoding.modality)
    read = {name: written(ds, tmp_path / f"{name}.dcm") for name, ds in made.items()}
    for kind in ("seg", "labelmap", "occupancy"):
        assert marked_voxels(read[kind]) == pytest.approx(planted_voxels(found), abs=0.01)
    capture = read["capture"]
    depth = PLANTED[0]
    corner = np.linalg.inv(found.affine) @ [*map(float, capture.ImagePositionPatient), 1.0]
    assert corner[0] == pytest.approx(depth, abs=1e-3)
    assert ((corner[1:3] > -0.5) & (corner[1:3] <= 0.0)).all()
    assert capture.LossyImageCompression == ("01" if encoding.tolerance else "00")
    reference = capture.SourceImageSequence[0]
    if encoding.kind == "enhanced":
        assert reference.ReferencedFrameNumber == depth + 1
    else:
        assert reference.ReferencedSOPInstanceUID == found.headers[depth].SOPInstanceUID
    found_faults = {name: faults(tmp_path / f"{name}.dcm") for name in made}
    assert found_faults == {name: [] for name in made}
