"""Real files of several vendors: each is filed or refused by the inbox, each series loads or is
refused, for a reason that is stated here."""

from collections import defaultdict

import pydicom
import pytest

from dicom_node import volume
from dicom_node.association.contexts import TRANSFER_SYNTAXES
from dicom_node.errors import NodeError
from dicom_node.inbox import Inbox
from dicom_node.series import ReceivedInstance

_META_START = 132
#: folder or file -> why the inbox does not take it
NOT_FILED = {
    "ct3slice_with_dicomseg": "Segmentation Storage of others is not taken here",
    "pydicom_data/HTJ2KLossless_08_RGB.dcm": "StudyInstanceUID is missing",
    "pydicom_data/HTJ2K_08_RGB.dcm": "StudyInstanceUID is missing",
    "pydicom_data/JLSL_16_15_1_1F.dcm": "StudyInstanceUID is missing",
    "pydicom_data/liver_nonbyte_aligned.dcm": "Segmentation Storage of others is not taken",
    "pydicom_data/liver_deflate.dcm": "transfer syntax not accepted",
    "pydicom_data/parametric_map_float.dcm": "Parametric Map Storage of others is not taken",
    "siemens_ct_j2k_series": "SOPClassUID is missing",
}
#: folder -> what becomes of each of its series, as it is
SERIES = {
    "ct3slice_with_dicomseg/ct-3slice": ["3 slices"],
    "dicom2nifti/anatomical/001": ["4 slices"],
    "dicom2nifti/failing/gantrytilting/001": ["4 slices"],
    "dicom2nifti/failing/notavolume/001": ["4 slices"],
    "dicom2nifti/failing/slicecount/001": ["2 slices"],
    "dicom2nifti/failing/sliceincrement/001": ["4 slices"],
    "dicom2nifti/failing/sliceorientation/001": ["4 slices"],
    "dicom2nifti/ge/dti/001": ["has no FrameOfReferenceUID"],
    "dicom2nifti/ge/fmri/001": ["has no FrameOfReferenceUID"],
    "dicom2nifti/generic/anatomical/002_non_isotropic": ["4 slices"],
    "dicom2nifti/generic/compressed_j2k/001": ["4 slices"],
    "dicom2nifti/generic/compressed_jpeg/001": ["4 slices"],
    "dicom2nifti/generic/compressed_jpegls/001": ["4 slices"],
    "dicom2nifti/generic/compressed_rle/001": ["4 slices"],
    "dicom2nifti/generic/rgb/001": ["Secondary Capture Image Storage: only CT and MR"],
    "dicom2nifti/hitachi/anatomical/001": ["4 slices"],
    "dicom2nifti/hyperfine/anatomical/001": ["has no FrameOfReferenceUID"],
    "dicom2nifti/philips/anatomical/001": ["4 slices"],
    "dicom2nifti/philips_enhanced/anatomical/001": ["has no FrameOfReferenceUID"],
    "dicom2nifti/philips_enhanced/fmri/001": ["has no FrameOfReferenceUID"],
    "dicom2nifti/siemens/anatomical/001": ["4 slices"],
    "dicom2nifti/siemens/fmri/001": ["Siemens mosaics, all slices"],
    "dicom2nifti/siemens_multiframe/anatomical/001": ["has no FrameOfReferenceUID"],
    "nema_wg04/J2KR": ["1 slices"] * 5,
    "nema_wg04/JLSL": ["1 slices"] * 5,
    "nema_wg04/JPLL": ["1 slices"] * 5,
    "nema_wg04/RLE": ["1 slices"] * 5,
    "pydicom_data": ["1 slices"],
    "siemens_12bit_mosaic": ["Siemens mosaics, 35 slices"],
    "siemens_mosaic/ep2d_Asc_2": ["Siemens mosaics, 36 slices"],
    "siemens_xa10_enhanced": ["4 multi-frame images"],
    "siemens_xa30_enhanced_t1/5_anat-T1w_acq-tfl": ["(96, 128, 128)"],
}


@pytest.fixture(scope="module")
def outcomes(shared_data, tmp_path_factory):
    """(why each file was not filed, what became of each series), both by folder."""
    root = shared_data / "dicom_variety"
    inbox_folder = tmp_path_factory.mktemp("inbox")
    inbox = Inbox(inbox_folder, 0)
    refused, series = {}, defaultdict(list)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        folder = str(path.parent.relative_to(root))
        arrived = as_it_would_travel(path)
        if arrived.transfer_syntax_uid not in TRANSFER_SYNTAXES:
            refused[path.relative_to(root)] = "transfer syntax not accepted"
            continue
        try:
            filed = inbox.file_instance(arrived)
        except NodeError as error:
            refused[path.relative_to(root)] = str(error)
            continue
        series[folder, filed.series_instance_uid].append(inbox_folder / filed.file_name)
    became = defaultdict(list)
    for (folder, _), files in series.items():
        became[folder].append(outcome(files))
    return refused, became


def as_it_would_travel(path):
    """A C-STORE request by a sender that believes its data set, not the file meta information."""
    content = path.read_bytes()
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    meta_length = int.from_bytes(content[_META_START + 8 : _META_START + 12], "little")
    return ReceivedInstance(
        association_id=1,
        calling_ae_title="SCANNER",
        affected_sop_class_uid=str(ds.get("SOPClassUID", "")),
        affected_sop_instance_uid=str(ds.get("SOPInstanceUID", "")),
        transfer_syntax_uid=str(ds.file_meta.get("TransferSyntaxUID", "")),
        encoded=content[_META_START + 12 + meta_length :],
    )


def outcome(files):
    try:
        return str(volume.build(files).voxels.shape)
    except NodeError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")  # the files are as they are
def test_every_real_file_is_filed_or_refused_for_its_reason(outcomes):
    refused, _ = outcomes
    left = dict(NOT_FILED)
    for path, reason in refused.items():
        name = str(path) if str(path) in NOT_FILED else str(path.parent)
        assert name in NOT_FILED, f"{path}: {reason}"
        assert NOT_FILED[name] in reason
        left.pop(name, None)
    assert left == {}


@pytest.mark.parametrize("folder", SERIES)
def test_every_real_series_loads_or_is_refused_for_its_reason(outcomes, folder):
    _, became = outcomes
    assert len(became[folder]) == len(SERIES[folder])
    for reason in SERIES[folder]:
        assert any(reason in text for text in became[folder]), became[folder]


def test_no_real_series_is_left_out(outcomes):
    assert set(outcomes[1]) == set(SERIES)
