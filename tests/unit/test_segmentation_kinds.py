"""The segments as a label map and as shares of voxels: valid, the same to every reader, honest."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as everybody calls it

from dicom_node.errors import ObjectError
from dicom_node.findings import locate
from dicom_node.objects import occupancy
from dicom_node.objects.measurement_report import make_report
from dicom_node.objects.occupancy_segmentation import make_occupancy_segmentation
from dicom_node.objects.segmentation import make_labelmap_segmentation, make_segmentation
from tests.make.instances import Geometry, make_enhanced, write
from tests.make.iod import faults
from tests.make.results import SCORE, SOURCES, EnhancedSource, Source, reread, to_bytes
from tests.oracle.occupancy import share

READER = Path(sys.prefix) / "bin" / "segimage2itkimage"
NAMED = {"node_id": "node-1", "series_number": 9002, "series_description": "research use only"}


def binary(source, **options):
    found = (source.headers, source.labels, source.findings, SCORE)
    return make_segmentation(*found, **NAMED, **options)


def labelmap(source, **options):
    found = (source.headers, source.labels, source.findings, SCORE)
    return make_labelmap_segmentation(*found, **NAMED, **options)


def shares(source, **options):
    found = (source.headers, source.map, source.labels, source.findings, SCORE)
    return make_occupancy_segmentation(*found, **NAMED, **options)


MAKERS = (labelmap, shares)


def enhanced(folder):
    made = make_enhanced("MR", Geometry(rows=24, columns=20, n_slices=9), range(9))
    return EnhancedSource(write(made, folder / "enhanced.dcm"))


def counts_of(source):
    """(segments, depth, height, width) places above the threshold, on the source grid."""
    found = np.zeros((len(source.findings), *source.shape), int)
    for rank, (box, counts) in enumerate(
        occupancy.occupancies(source.map, source.labels, SCORE.threshold)
    ):
        found[rank][box] = counts
    return found


def read_volume(ds, source, **how):
    """What highdicom reads, on the whole source grid; (depth, height, width[, segments])."""
    seg = hd.seg.Segmentation.from_dataset(reread(ds))
    volume = seg.get_volume(**how)
    whole = np.zeros((*source.shape, *volume.array.shape[3:]), volume.array.dtype)
    (start,) = volume.map_indices_to_reference(np.array([[0, 0, 0]]))
    (end,) = volume.map_indices_to_reference(np.array(volume.spatial_shape)[None] - 1)
    at = np.round([(np.linalg.inv(source.affine) @ [*p, 1.0])[:3] for p in (start, end)]).astype(
        int
    )
    depths = np.linspace(at[0][0], at[1][0], volume.spatial_shape[0]).astype(int)
    assert (at[0][1:] == 0).all()
    assert (at[1][1:] == np.array(source.shape[1:]) - 1).all()
    whole[depths] = volume.array
    return whole


# --- objects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_they_have_no_fault(make, kind, tmp_path):
    path = tmp_path / "seg.dcm"
    path.write_bytes(to_bytes(make(Source(kind))))
    assert faults(path) == []


@pytest.mark.parametrize("make", MAKERS)
def test_of_an_enhanced_source_they_have_no_fault(make, tmp_path):
    made = make(enhanced(tmp_path))
    path = tmp_path / "seg.dcm"
    path.write_bytes(to_bytes(made))
    assert faults(path) == []


@pytest.mark.parametrize("make", MAKERS)
def test_a_planted_fault_is_found(make, tmp_path):
    made = make(Source())
    del made.SegmentSequence[-1].SegmentLabel
    path = tmp_path / "seg.dcm"
    path.write_bytes(to_bytes(made))
    assert any("SegmentLabel" in fault for fault in faults(path))


@pytest.mark.parametrize("make", MAKERS)
def test_segments_are_those_of_the_binary_one(make):
    source, tracked = Source(), {2: "2.25.4711"}
    one, other = binary(source, tracked=tracked), make(source, tracked=tracked)
    described = [segment for segment in other.SegmentSequence if segment.SegmentNumber > 0]
    assert list(map(str, described)) == list(map(str, one.SegmentSequence))
    assert described[1].TrackingUID == "2.25.4711"
    assert other.SOPInstanceUID != one.SOPInstanceUID
    assert other.SeriesInstanceUID != one.SeriesInstanceUID
    assert other.FrameOfReferenceUID == one.FrameOfReferenceUID
    (before,), (after,) = one.ReferencedSeriesSequence, other.ReferencedSeriesSequence
    assert str(before) == str(after)


@pytest.mark.parametrize("make", MAKERS)
def test_they_are_the_same_bytes_when_made_again(make):
    assert to_bytes(make(Source())) == to_bytes(make(Source()))


@pytest.mark.parametrize("make", MAKERS)
def test_without_findings_there_is_none(make):
    source = Source()
    source.findings, source.labels = (), np.zeros_like(source.labels)
    assert make(source) is None


def test_a_map_of_another_size_is_refused():
    source = Source()
    source.map = source.map[1:]
    with pytest.raises(ObjectError, match="the map is"):
        shares(source)


def test_the_label_map_is_read_as_it_was_located():
    source = Source("oblique")
    made = labelmap(source)
    assert made.SegmentationType == "LABELMAP"
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert made.NumberOfFrames == np.count_nonzero(source.labels.any(axis=(1, 2)))
    read = read_volume(made, source, combine_segments=True)
    assert np.array_equal(read, source.labels)


@pytest.mark.parametrize("kind", ["oblique", "sagittal", "enhanced"])
def test_shares_are_read_as_they_were_counted(kind, tmp_path):
    source = enhanced(tmp_path) if kind == "enhanced" else Source(kind)
    made = shares(source)
    assert (made.SegmentationType, made.SegmentationFractionalType) == ("FRACTIONAL", "OCCUPANCY")
    read = read_volume(made, source, combine_segments=False)
    counted = counts_of(source) / occupancy.PLACES
    assert np.moveaxis(read, -1, 0) == pytest.approx(counted, abs=0.5 / 255 + 1e-6)
    assert counted.max() == pytest.approx(1.0 if kind != "enhanced" else counted.max())


@pytest.mark.parametrize("make", MAKERS)
def test_dcmqi_reads_the_same_voxels_where_they_are(make, tmp_path):
    source = Source("oblique")
    path = tmp_path / "seg.dcm"
    path.write_bytes(to_bytes(make(source)))
    call = [str(READER), "--inputDICOM", str(path), "--outputDirectory", str(tmp_path)]
    subprocess.run(call, check=True, capture_output=True)
    wanted = (
        np.stack([source.labels == rank for rank in (1, 2)]) * np.reshape([1, 2], (2, 1, 1, 1))
        if make is labelmap
        else np.round(counts_of(source) * 255 / occupancy.PLACES)
    ).astype(int)
    found = np.zeros_like(wanted)
    for rank, values, place in dcmqi_voxels(tmp_path, source, make is labelmap):
        found[(rank - 1, *place)] = values
    assert np.array_equal(found, wanted)


def dcmqi_voxels(folder, source, is_labelmap):
    """Segment, value and index in the source grid of each voxel that dcmqi has written."""
    inverse = np.linalg.inv(source.affine)
    for name in sorted(folder.glob("*.nrrd")):
        image = sitk.ReadImage(str(name))
        values = sitk.GetArrayFromImage(image)
        for index in np.argwhere(values):
            world = image.TransformIndexToPhysicalPoint([int(at) for at in index[::-1]])
            place = (inverse @ [*world, 1.0])[:3]
            assert place == pytest.approx(np.round(place), abs=1e-3)
            value = int(values[tuple(index)])
            yield value if is_labelmap else int(name.stem), value, np.round(place).astype(int)


# --- at most 400 frames -------------------------------------------------------------------------


class Tall(Source):
    """Findings that run through many slices, beside each other; the first is the highest."""

    def __init__(self, n_slices):
        super().__init__("axial")
        depth = max(n_slices) + 2
        self.shape = (depth, 8, 4 * len(n_slices))
        header = self.headers[0]
        self.headers = []
        for k in range(depth):
            ds = deepcopy(header)
            ds.SOPInstanceUID = f"1.2.3.4.{k + 1}"
            ds.Rows, ds.Columns = self.shape[1:]
            position = (self.affine @ [k, 0, 0, 1])[:3]
            ds.ImagePositionPatient = [float(v) for v in position]
            self.headers.append(ds)
        self.map = np.zeros(self.shape, np.float32)
        for number, length in enumerate(n_slices):
            self.map[1 : 1 + length, 4, 4 * number + 1] = 90.0 - number
        self.findings, self.labels = locate(
            self.map, self.affine, threshold=3.0, min_volume_ml=0.0, max_findings=5
        )


def test_frames_are_400_at_most_and_the_last_ranks_are_left_out():
    source = Tall([250, 150, 10])
    assert binary(source).NumberOfFrames == 400
    assert len(binary(source).SegmentSequence) == 2
    assert len(labelmap(source).SegmentSequence) == 4  # background, and all three
    # a share of the slices above and below is filled too
    assert 250 <= shares(source).NumberOfFrames <= 400
    assert len(shares(source).SegmentSequence) == 1


def test_a_finding_that_takes_more_frames_alone_has_no_segmentation():
    source = Tall([401])
    assert binary(source) is labelmap(source) is shares(source) is None


def test_the_report_still_measures_what_the_segmentation_leaves_out():
    source = Tall([250, 150, 10])
    named = {**NAMED, "series_number": 9007}
    report = make_report(source.headers, binary(source), source.findings, SCORE, **named)
    content = hd.sr.Comprehensive3DSR.from_dataset(reread(report)).content
    assert len(content.get_volumetric_roi_measurement_groups()) == 2
    names = [group.tracking_identifier for group in content.get_image_measurement_groups()]
    assert "Suspected anomaly 3" in names


# --- how much of a voxel ------------------------------------------------------------------------


def sphere(radius_mm, centre_mm, spacing, shape=(13, 17, 17)):
    """A map that falls off by 1 a millimetre and is 3 on the sphere; its affine."""
    places = np.moveaxis(np.indices(shape), 0, -1) * spacing
    away = np.linalg.norm(places - centre_mm, axis=-1)
    return (3.0 + radius_mm - away).astype(np.float32), np.diag([*spacing, 1.0])


def located(scores, affine):
    return locate(scores, affine, threshold=3.0, min_volume_ml=0.0, max_findings=9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0)])
@pytest.mark.parametrize("voxels", [1.0, 1.5, 2.0, 3.0])
def test_of_a_small_sphere_shares_say_the_volume_better_than_voxels(voxels, spacing):
    spacing = np.array(spacing)
    radius = voxels * spacing.max()
    true = 4 / 3 * np.pi * radius**3
    rng = np.random.default_rng(7)
    off = []
    for _ in range(10):
        centre = (np.array([6, 8, 8]) + rng.uniform(-0.5, 0.5, 3)) * spacing
        scores, affine = sphere(radius, centre, spacing)
        _, labels = located(scores, affine)
        ((_, counts),) = occupancy.occupancies(scores, labels, 3.0)
        voxel = spacing.prod()
        off.append(
            (counts.sum() / occupancy.PLACES * voxel - true, (labels > 0).sum() * voxel - true)
        )
    mine, whole = np.abs(np.array(off) / true).mean(axis=0)
    assert mine < 0.6 * whole
    assert mine < 0.06


def test_shares_are_those_of_the_slow_twin():
    rng = np.random.default_rng(3)
    scores = rng.normal(2.0, 1.2, (6, 7, 8)).astype(np.float32)
    _, labels = locate(scores, np.eye(4), threshold=3.0, min_volume_ml=0.0, max_findings=255)
    assert labels.max() > 1
    for rank, (box, counts) in enumerate(occupancy.occupancies(scores, labels, 3.0), 1):
        whole = np.zeros(scores.shape, int)
        whole[box] = counts
        for index in np.ndindex(scores.shape):
            assert whole[index] == share(scores, labels, rank, 3.0, index), index


def test_a_small_region_beside_a_finding_takes_no_part():
    scores = np.zeros((5, 9, 9), np.float32)
    scores[1:4, 1:4, 1:4] = 20.0
    scores[2, 2, 6] = 20.0
    found, labels = locate(scores, np.eye(4), threshold=3.0, min_volume_ml=0.01, max_findings=9)
    assert len(found) == 1
    ((box, counts),) = occupancy.occupancies(scores, labels, 3.0)
    whole = np.zeros(scores.shape, int)
    whole[box] = counts
    assert whole[2, 2, 2] == occupancy.PLACES
    assert whole[2, 2, 4] > 0
    assert whole[:, :, 5:].sum() == 0
    assert (whole[labels == 1] > 0).all()


def test_two_findings_in_one_voxel_are_said_to_share_it():
    source = Source()
    source.map[:] = 0.0
    source.map[5, 10:14, 10:14], source.map[5, 10:14, 15:19] = 80.0, 70.0
    source.findings, source.labels = located(source.map, source.affine)
    assert len(source.findings) == 2
    apart, together = Source(), shares(source)
    assert shares(apart).SegmentsOverlap == "NO"
    assert together.SegmentsOverlap == "YES"
    counted = counts_of(source)
    assert counted.sum(axis=0).max() <= occupancy.PLACES
    assert ((counted > 0).sum(axis=0) == 2).any()


def test_there_is_a_frame_for_each_slice_that_a_segment_reaches():
    source = Source()
    reached = (counts_of(source) > 0).any(axis=(2, 3)).sum()
    assert shares(source).NumberOfFrames == reached
