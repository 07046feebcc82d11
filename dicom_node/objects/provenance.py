"""Who made an object, from what, and when: identifiers, headers and stamps of result objects.

Everything here is a function of the score and its source, so that the same score makes the same
bytes: a PACS that already holds a SOP Instance UID silently keeps its old content.

highdicom validates what it copies, and scanners write much that does not pass: it gets a cleaned
header, and the finished object gets the identity of patient and study back as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from hashlib import sha256

import highdicom as hd
import numpy as np
from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID
from pydicom.valuerep import DA, DT, TM, PersonName, validate_value

from dicom_node import __version__
from dicom_node.errors import ObjectError
from dicom_node.findings import ScoreSummary
from dicom_node.identity import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    INSTANCE_CREATOR_UID,
    MANUFACTURER,
    MODEL_NAME,
    derived_uid,
)

#: a person name with a caret: a single component draws warnings
CREATOR_NAME = "dicom_node^"
CHARACTER_SET = "ISO_IR 192"

#: coding scheme of our own (PS3.3 Table 8.2-1: a designator that begins with 99 is private)
CODING_SCHEME = "99DICOMNODE"
#: no public code means an anomaly score: it is no z-score, though it counts in robust deviations
SCORE = Code("anomaly-score", CODING_SCHEME, "Anomaly score")

#: Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2), type 2: empty when unknown
_TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
#: the same modules, what else says whose study it is
_IDENTITY = (
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "PatientBirthTime",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "EthnicGroup",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID",
    "StudyDescription",
    "IssuerOfAccessionNumberSequence",
    "PhysiciansOfRecord",
    "ProcedureCodeSequence",
    "AdmittingDiagnosesDescription",
    "AdditionalPatientHistory",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "TimezoneOffsetFromUTC",
)
#: what a derived object needs to know of the image and of the device that acquired it
_IMAGE = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "Modality",
    "ImageType",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "BodyPartExamined",
    "Laterality",
    "PatientPosition",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SliceLocation",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "DeviceSerialNumber",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "InstitutionAddress",
    "StationName",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence",
    "DimensionIndexSequence",
    "DimensionOrganizationType",
)
#: sequences whose items name an image and, if they will, frames of it (PS3.3 Table 10-3)
_IMAGE_REFERENCES = {"ReferencedImageSequence", "SourceImageSequence"}
#: enumerated (PS3.3 C.7.1.1); highdicom refuses anything else
_SEXES = ("M", "F", "O", "")
#: a switch of the character set (PS3.5 6.1.2.5.1)
_ESCAPE = re.compile("\x1b[\x20-\x2f]+[\x30-\x7e]")
#: "+0900": hours and minutes (PS3.3 C.12.1)
_OFFSET = re.compile(r"([+-])(\d{2})([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Equipment:
    """The device that made an object, as the General Equipment module has it (PS3.3 C.7.5.1)."""

    manufacturer: str
    model_name: str
    #: program, fingerprint of the scoring, reference batch, and the batch's own template and
    #: histogram where it has them; a list, for a tuple draws warnings
    software_versions: list[str]
    serial_number: str


def equipment(score: ScoreSummary, node_id: str) -> Equipment:
    """Return this node as the equipment behind a score."""
    # LO holds 64 characters
    versions = [__version__, score.fingerprint, score.batch_version]
    versions += [f"space {score.space}"] if score.space else []
    return Equipment(MANUFACTURER, MODEL_NAME, [text[:64] for text in versions], node_id[:64])


def observer(node_id: str) -> hd.sr.ObserverContext:
    """Return this node as the device that observed (PS3.16 TID 1002, 1004)."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid(MANUFACTURER, "device", node_id),
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=node_id[:64],
    )
    return hd.sr.ObserverContext(codes.DCM.Device, device)


def scoring_parameters(score: ScoreSummary) -> dict[str, str]:
    """Return by name what an algorithm identification says of how a score was made."""
    return {
        "protocol": score.protocol,
        "encoder": score.encoder,
        "reference_batch": score.batch_version,
        "reference_subjects": str(score.n_reference),
        "threshold": f"{score.threshold:g}",
        **({"space": score.space} if score.space else {}),
        **({"volume": score.part.name} if score.part else {}),
    }


@dataclass(frozen=True, slots=True)
class Identifiers:
    """The UIDs of one kind of object made from one score of one series."""

    #: what they are derived from; the last is the kind
    parts: tuple[str, ...]
    #: of findings that an earlier revision had already, by rank
    tracked: Mapping[int, str] = field(default_factory=dict)

    @property
    def series_uid(self) -> str:
        """Series Instance UID."""
        return derived_uid(*self.parts, "series")

    def instance_uid(self, index: int) -> str:
        """Return the SOP Instance UID of the object with this Instance Number in the series."""
        return derived_uid(*self.parts, str(index))

    def tracking_uid(self, rank: int) -> str:
        """Return the Tracking UID of a finding.

        The kind of object is left out: a segment and a measurement of one finding share it.
        """
        return self.tracked.get(rank) or derived_uid(*self.parts[:-1], "finding", str(rank))


def identifiers(
    headers: Sequence[Dataset],
    score: ScoreSummary,
    kind: str,
    tracked: Mapping[int, str] | None = None,
) -> Identifiers:
    """Derive the UIDs: anything that changes the content makes a new series, a late instance too.

    `kind` is "segmentation" or the like: each has a series of its own. `tracked` has the Tracking
    UIDs of findings that were seen before, by rank.
    """
    members = "\n".join(sorted(str(ds.SOPInstanceUID) for ds in headers))
    return Identifiers(
        (
            str(headers[0].SeriesInstanceUID),
            sha256(members.encode()).hexdigest(),
            score.fingerprint,
            score.batch_version,
            repr(float(score.threshold)),
            # the volumes of a series may share an instance, and stay what they were in its next
            # revision
            *((score.part.subject,) if score.part else ()),
            kind,
        ),
        tracked or {},
    )


def grid_of(headers: Sequence[Dataset]) -> tuple[int, int, int]:
    """Return the (depth, height, width) that headers are of: slices, or frames of one of them."""
    first = headers[0]
    n_slices = int(first.get("NumberOfFrames", 1)) if len(headers) == 1 else len(headers)
    return n_slices, int(first.Rows), int(first.Columns)


def name_body_part(made: Dataset, source: Dataset, otherwise: str = "") -> None:
    """Let an object have a body part: without, the General Series module asks for a laterality."""
    known = str(source.get("BodyPartExamined") or otherwise)
    made.BodyPartExamined = known[:16] or "WHOLEBODY"


def sanitized_headers(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Copy what a derived object needs of the source headers, with the faults taken out.

    Missing type 2 attributes are filled, invalid values dropped, text is Unicode; pixels, private
    attributes and curves stay behind. The originals are not changed.

    Returns
    -------
    As many headers in the same order, fit for a constructor of highdicom, not for a file.
    """
    copies = [_sanitized(ds) for ds in datasets]
    thickness = _slice_distance_mm(copies)
    for ds in copies:
        if "NumberOfFrames" not in ds and not ds.get("SliceThickness"):
            ds.SliceThickness = round(thickness, 6)
        _share_plane(ds)
    return copies


def _share_plane(ds: Dataset) -> None:
    """Say for all frames what each frame says of its plane: some scanners repeat it per frame.

    highdicom looks for these two only among the shared functional groups. One volume has one
    orientation and one pixel size, so that the first frame speaks for all.
    """
    frames = ds.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return
    if not ds.get("SharedFunctionalGroupsSequence"):
        ds.SharedFunctionalGroupsSequence = [Dataset()]
    shared = ds.SharedFunctionalGroupsSequence[0]
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if keyword not in shared and keyword in frames[0]:
            shared[keyword] = frames[0][keyword]


def _sanitized(source: Dataset) -> Dataset:
    """Copy one header; what is not on the lists above stays behind."""
    ds = Dataset()
    for element in _elements(source, [*_TYPE_2, *_IDENTITY, *_IMAGE]):
        if _is_valid(element):
            ds.add(element)
    for keyword in _TYPE_2:
        if keyword not in ds:
            setattr(ds, keyword, "")
    ds.Modality = ds.get("Modality") or "OT"
    if ds.get("TimezoneOffsetFromUTC") and _zone(ds) is None:
        del ds.TimezoneOffsetFromUTC
    return ds


def _elements(source: Dataset, keywords: Iterable[str]) -> Iterator[DataElement]:
    """Yield copies of the elements that are there and can be read, unchecked and as Unicode."""
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        element = _element(source, keyword, tag) if tag is not None and tag in source else None
        if element is not None:
            yield element


def _element(source: Dataset, keyword: str, tag: int) -> DataElement | None:
    """Copy one element; None where the sender's value is not of its VR: as good as missing."""
    # functional groups are large, and of their text nothing is used
    copied = deepcopy if keyword in _IMAGE else _as_unicode
    try:
        # raw elements are checked on first access: here the faulty ones are wanted too
        with config.disable_value_validation():
            found = source[tag]
            value = copied("" if found.VR == "PN" and not found.value else found.value)
            return DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE)
    except (ValueError, TypeError, NotImplementedError):
        return None


def _as_unicode(value: object) -> object:
    """Copy a value so that nothing of it keeps the source's character set.

    What was read from a file and not yet looked at is written again byte by byte, and a result has
    another character set: items of sequences are looked at here.
    """
    if isinstance(value, Items):
        return [_unicode_item(item) for item in value]
    if isinstance(value, MultiValue):
        return [_as_unicode(one) for one in value]
    if isinstance(value, str | PersonName):
        # the library leaves those of ISO 2022 IR 58 (Chinese) in the text
        return _ESCAPE.sub("", str(value))
    return deepcopy(value)


def _unicode_item(item: Dataset) -> Dataset:
    """Copy one item, without a character set of its own and what is private."""
    copied = Dataset()
    for element in _elements(item, [str(name) for name in item.dir()]):
        if element.keyword != "SpecificCharacterSet":
            copied.add(element)
    return copied


def _is_valid(element: DataElement) -> bool:
    """Tell whether highdicom and the writer take the element without complaint."""
    if element.VR == "SQ":
        return True
    if element.keyword == "PatientSex":
        return element.value in _SEXES
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            _check_value(element.VR, value)
    except (ValueError, TypeError, OverflowError):
        return False
    # a name of one component is legal and verbose libraries warn of it: see carry_identity
    return element.VR != "PN" or not str(element.value) or "^" in str(element.value)


def _check_value(vr: str, value: object) -> None:
    """Raise ValueError if the value is not of its VR."""
    parsers = {"DA": DA, "TM": TM, "DT": DT}
    if value and vr in parsers:
        parsers[vr](str(value))
    if isinstance(value, str) or vr == "PN":
        validate_value(vr, str(value), config.RAISE)


def _slice_distance_mm(headers: Sequence[Dataset]) -> float:
    """Return the distance of the first two slices; 1 when there is only one.

    In place of a missing Slice Thickness, which highdicom wants of every slice.
    """
    if len(headers) < 2:
        return float(headers[0].get("SpacingBetweenSlices") or 1.0)
    first, second = (np.asarray(ds.ImagePositionPatient, dtype=float) for ds in headers[:2])
    return float(np.linalg.norm(second - first)) or 1.0


def _zone(header: Dataset) -> timezone | None:
    """Return the source's own time zone, if it says so and the value is one."""
    match = _OFFSET.fullmatch(str(header.get("TimezoneOffsetFromUTC") or "").strip())
    if match is None:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return (
        timezone(-offset if match[1] == "-" else offset) if offset < timedelta(hours=24) else None
    )


def common_arguments(
    headers: Sequence[Dataset], score: ScoreSummary, node_id: str
) -> dict[str, object]:
    """Return what every highdicom constructor of ours is given; raises ObjectError."""
    if not headers:
        raise ObjectError("an object needs at least one source header")
    device = equipment(score, node_id)
    return {
        "manufacturer": device.manufacturer,
        "manufacturer_model_name": device.model_name,
        "software_versions": device.software_versions,
        "device_serial_number": device.serial_number,
        "content_qualification": "RESEARCH",
        "specific_character_set": CHARACTER_SET,
    }


def finish(ds: Dataset, source: Dataset, score: ScoreSummary, uids: Identifiers) -> None:
    """Give an object its source's identity and the score's time, in place of the clock's.

    Parameters
    ----------
    ds
        A new object of highdicom; changed in place.
    source
        A header as it came, not a cleaned one.
    uids
        Those the object was made with.
    """
    carry_identity(ds, source)
    ds.InstanceCreatorUID = INSTANCE_CREATOR_UID
    # in the zone of the source's other times, which Timezone Offset names for all of the data set
    _stamp(ds, score.scored_at.astimezone(_zone(source)) if _zone(source) else score.scored_at)
    _name_dimensions(ds, derived_uid(*uids.parts, "dimensions"))
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME


def name_frames(ds: Dataset, source: Dataset, score: ScoreSummary) -> None:
    """Name frames of the source by their numbers there, where a score is of some of them alone.

    What was made of such a part counts its frames from 1, and refers without a number to all of
    them; `ds` is changed in place.
    """
    if score.part is None or not score.part.frames:
        return
    for element in ds:
        if element.VR != "SQ":
            continue
        for item in element.value:
            own = item.get("ReferencedSOPInstanceUID") == source.SOPInstanceUID
            if own and element.keyword in _IMAGE_REFERENCES:
                item.ReferencedFrameNumber = _renumbered(item, score.part.frames)
            name_frames(item, source, score)


def _renumbered(item: Dataset, frames: Sequence[int]) -> list[int] | int:
    """Return the source's numbers of the frames that an item refers to."""
    counted = item.get("ReferencedFrameNumber")
    if counted is None:
        return list(frames)
    several = counted if isinstance(counted, MultiValue) else [counted]
    found = [frames[int(number) - 1] for number in several]
    return found if len(found) > 1 else found[0]


def carry_identity(ds: Dataset, source: Dataset) -> None:
    """Copy whose study it is from `source` to `ds`, verbatim.

    Text is kept even where it breaks a length: a PACS would file another Patient ID as another
    patient. Dates, times, codes and sequences are kept only where they are valid.
    """
    # the lengths of LO, SH, PN and LT are the ones that senders break
    for element in _elements(source, [*_TYPE_2, *_IDENTITY]):
        if element.VR in ("LO", "SH", "PN", "LT") or _is_valid(element):
            ds.add(element)
    if "TimezoneOffsetFromUTC" in ds and _zone(ds) is None:
        del ds.TimezoneOffsetFromUTC


def _stamp(ds: Dataset, moment: datetime) -> None:
    """Replace every time that was read from the clock."""
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
    ds.InstanceCreationDate, ds.InstanceCreationTime = date, time
    ds.SeriesDate, ds.SeriesTime = date, time
    if "PresentationCreationDate" in ds:  # a presentation state has no other date of its content
        ds.PresentationCreationDate, ds.PresentationCreationTime = date, time
    else:
        ds.ContentDate, ds.ContentTime = date, time
    if "DateOfSecondaryCapture" in ds:
        ds.DateOfSecondaryCapture, ds.TimeOfSecondaryCapture = date, time
    for item in ds.get("ContributingEquipmentSequence", []):
        # the acquisition device's own time comes from the source and stays
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == "109101":
            continue
        item.ContributionDateTime = date + time


def _name_dimensions(ds: Dataset, uid: str) -> None:
    """Replace the Dimension Organization UID, which the library draws at random."""
    for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in ds.get(keyword, []):
            if "DimensionOrganizationUID" in item:
                item.DimensionOrganizationUID = uid
