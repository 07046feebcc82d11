"""Real subjects through the whole line: DCMTK's storescu -> the node -> a real Orthanc.

One node with the real encoder serves four protocols; what lies in Orthanc is then held against
the source series, and the planted lesion of the built-in cohort against the findings.
"""

import subprocess

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    Comprehensive3DSRStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_node.demo import pacs as pacs_module
from dicom_node.demo.check import lesion_ranks, sort_returned
from dicom_node.demo.cohort import load_template, make_cohort
from dicom_node.demo.mr_series import Acquisition, make_uid, volume_from_nifti, write_mr_series
from dicom_node.folders import cache_folder
from dicom_node.weight_files import prepare_packaged
from tests.make.nodes import require, running_node, storescu

CONFIG = """
[node]
data_dir = "node"
[receiver]
port = {port}
[storage]
reserve = "100 MiB"
[completion]
quiet = "3 s"
[web]
port = {web_port}

[[protocol]]
name = "built-in"
mode = "live"
min_reference = 5
max_findings = 3
[protocol.match]
modality = "MR"
series_description = "^T1 3D$"

[[protocol]]
name = "head-t1"
mode = "live"
min_reference = 3
spacing_mm = 2.0
extent_mm = [196.0, 252.0, 196.0]
finding_threshold = 1.5
max_findings = 3
[protocol.match]
modality = "MR"
series_description = "ixi"

[[protocol]]
name = "head-flair"
mode = "live"
min_reference = 3
spacing_mm = 2.0
extent_mm = [168.0, 224.0, 168.0]
finding_threshold = 1.5
max_findings = 3
[protocol.match]
modality = "MR"
series_description = "flair"

[[protocol]]
name = "chest-ct"
mode = "live"
min_reference = 3
spacing_mm = 3.0
extent_mm = [336.0, 336.0, 420.0]
intensity = "hounsfield"
finding_threshold = 1.5
max_findings = 3
body_part = "CHEST"
[protocol.match]
modality = "CT"

[[destination]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {pacs_port}
retry_first = "1 s"
"""

N_MR = 4
#: one fixture waits for 18 series; a machine without bf16, shared with other tests, needs its time
LIMIT_S = 1200
pytestmark = pytest.mark.timeout(LIMIT_S + 300)


def nifti_series(paths, kind, folder):
    """Turn real NIfTI heads into MR series; the values of an image have no unit."""
    made = []
    for number, path in enumerate(paths):
        voxels, affine = volume_from_nifti(path)
        scaled = np.clip(voxels, 0, None) * (2000 / np.percentile(voxels, 99.9))
        who = Acquisition(f"{kind}{number}", f"Real^{kind}{number}", series_description=kind)
        made.append(write_mr_series(scaled, affine, folder / f"{kind}{number}", who))
    return made


def chest_series(source, folder):
    """The real chest CT as it is, and three other patients made of it by a shift and noise."""
    files = sorted(source.glob("*"))
    made = [files]
    for number in range(1, 4):
        random = np.random.default_rng(number)
        target = folder / f"chest{number}"
        target.mkdir(parents=True)
        made.append([another_patient(path, target, number, random) for path in files])
    return made


def another_patient(path, folder, number, random):
    ds = pydicom.dcmread(path)
    pixels = np.roll(ds.pixel_array, (2 * number, -3 * number), axis=(0, 1)).astype(np.int32)
    pixels += np.rint(random.normal(0, 8, pixels.shape)).astype(np.int32)
    low, high = (-32768, 32767) if ds.PixelRepresentation else (0, 65535)
    dtype = np.int16 if ds.PixelRepresentation else np.uint16
    ds.PixelData = np.clip(pixels, low, high).astype(dtype).tobytes()
    ds.PatientID = f"OTHER{number}"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(ds, keyword, make_uid(str(number), str(ds[keyword].value)))
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(folder / path.name)
    return folder / path.name


@pytest.fixture(scope="module")
def came_back(shared_data, tmp_path_factory):
    """Send everything; return (kind, source files, head or None, files in Orthanc) per series."""
    folder = tmp_path_factory.mktemp("real")
    prepare_packaged(cache_folder())
    data = shared_data
    sources = [
        *(
            ("head-t1", s, None)
            for s in nifti_series(
                sorted((data / "brain_t1w_normal_ixi_2mm").glob("*.nii.gz"))[:N_MR], "ixi", folder
            )
        ),
        *(
            ("head-flair", s, None)
            for s in nifti_series(
                sorted((data / "brain_flair_glioma_msd").glob("*_flair.nii.gz"))[:N_MR],
                "flair",
                folder,
            )
        ),
        *(
            ("chest-ct", s, None)
            for s in chest_series(data / "chest_ct_lungdx_A0001" / "dicom", folder)
        ),
    ]
    for head in make_cohort(load_template(cache_folder()), 5, 1, 1):
        who = Acquisition(head.name, f"Demo^{head.name}")
        sources.append(
            ("built-in", write_mr_series(head.voxels, head.affine, folder / head.name, who), head)
        )
    port, web_port = pacs_module.free_ports(2)
    orthanc = require("Orthanc")
    (folder / "pacs").mkdir()
    with pacs_module.running_orthanc(orthanc, folder / "pacs", "DICOM_NODE", port) as pacs:
        text = CONFIG.format(port=port, web_port=web_port, pacs_port=pacs.port)
        with running_node(folder / "run", text, port, web_port) as node:
            for _, files, _ in sources:
                sent = storescu(port, files)
                assert sent.returncode == 0, sent.stderr
            node.wait_for(
                lambda s: (
                    s["jobs"].get("report done") == len(sources)
                    and not any(key.endswith(" queued") for key in s["delivery"])
                ),
                "the delivery of every result",
                timeout=LIMIT_S,
            )
            found = []
            for kind, files, head in sources:
                study = str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
                stored = pacs_module.stored_objects(pacs, study, folder / "returned" / study)
                found.append((kind, files, head, study, stored))
            yield found


def objects_of(stored, sop_class):
    return [
        path
        for path in stored
        if pydicom.dcmread(path, stop_before_pixels=True).SOPClassUID == sop_class
    ]


def test_secondary_captures_of_every_study_arrive_in_the_study_itself(came_back):
    for kind, files, _, study, stored in came_back:
        source = pydicom.dcmread(files[0], stop_before_pixels=True)
        captures = objects_of(stored, SecondaryCaptureImageStorage)
        assert captures, kind
        for path in captures:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            assert ds.StudyInstanceUID == study
            assert ds.PatientID == source.PatientID
            assert "research" in ds.SeriesDescription.lower()


@pytest.mark.parametrize("kind", ["built-in", "head-t1", "head-flair", "chest-ct"])
def test_segmentations_arrive_for_every_kind_of_series(came_back, kind):
    assert any(
        objects_of(stored, SegmentationStorage) for k, _, _, _, stored in came_back if k == kind
    )


def test_the_real_chest_ct_as_it_is_gets_its_overlay(came_back):
    _, _, _, _, stored = next(entry for entry in came_back if entry[0] == "chest-ct")
    returned = sort_returned(stored)
    assert returned.segmentation
    assert len(returned.secondary_captures) > 1


def test_a_report_of_every_study_arrives_and_refers_to_its_segmentation(came_back):
    for kind, _, _, study, stored in came_back:
        (path,) = objects_of(stored, Comprehensive3DSRStorage)
        report = hd.sr.srread(path)
        assert report.StudyInstanceUID == study, kind
        groups = report.content.get_volumetric_roi_measurement_groups()
        segmentations = [pydicom.dcmread(p) for p in objects_of(stored, SegmentationStorage)]
        segments = [s for one in segmentations for s in one.SegmentSequence]
        assert [group.tracking_uid for group in groups] == [s.TrackingUID for s in segments]


def test_dciodvfy_reports_no_error(came_back):
    checked = 0
    for _, _, _, _, stored in came_back:
        captures = objects_of(stored, SecondaryCaptureImageStorage)
        reports = objects_of(stored, Comprehensive3DSRStorage)
        for path in [*objects_of(stored, SegmentationStorage), *reports, *captures[:3]]:
            done = subprocess.run(
                [require("/usr/bin/dciodvfy"), "-new", str(path)],
                capture_output=True,
                text=True,
                check=False,
            )
            errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
            assert not errors, (path, errors)
            checked += 1
    assert checked > len(came_back)


def test_every_segment_lies_on_the_source_series_to_a_hundredth_of_a_millimetre(came_back):
    compared = 0
    for _, files, _, _, stored in came_back:
        positions = np.array(
            [
                [float(v) for v in pydicom.dcmread(f, stop_before_pixels=True).ImagePositionPatient]
                for f in files
            ]
        )
        source = pydicom.dcmread(files[0], stop_before_pixels=True)
        for path in objects_of(stored, SegmentationStorage):
            segmentation = hd.seg.segread(path)
            volume = segmentation.get_volume(combine_segments=True)
            assert segmentation.FrameOfReferenceUID == source.FrameOfReferenceUID
            assert (segmentation.Rows, segmentation.Columns) == (source.Rows, source.Columns)
            np.testing.assert_allclose(
                volume.pixel_spacing, [float(v) for v in source.PixelSpacing], atol=1e-4
            )
            for frame in segmentation.PerFrameFunctionalGroupsSequence:
                plane = frame.PlanePositionSequence[0].ImagePositionPatient
                distance = np.linalg.norm(positions - [float(v) for v in plane], axis=1).min()
                assert distance < 0.01
                compared += 1
    assert compared > 50


def test_the_planted_lesion_lies_in_one_of_the_three_highest_findings(came_back):
    planted = 0
    for _, _, head, _, stored in came_back:
        if head is None or not head.lesions:
            continue
        ranks = lesion_ranks(head, sort_returned(stored).segmentation)
        planted += len(ranks)
        assert all(rank is not None and rank <= 3 for rank in ranks), (head.name, ranks)
    assert planted >= 1
