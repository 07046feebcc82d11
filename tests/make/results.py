"""Sources with planted anomalies, what a score says of them, and what is made of both."""

from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from dicom_node import volume
from dicom_node.findings import ScoreSummary, locate
from dicom_node.objects import overlay
from dicom_node.objects.secondary_capture import make_secondary_captures
from dicom_node.objects.segmentation import make_segmentation
from tests.make.iod import dciodvfy

SCORE = ScoreSummary(
    protocol="brain",
    subject_score=6.5,
    percentile=97.0,
    n_reference=40,
    batch_version="brain-2026-01",
    fingerprint="0123456789abcdef0123456789abcdef",
    threshold=3.0,
    encoder="vit_small",
    scored_at=datetime(2026, 1, 31, 20, 30, 15, 250000, tzinfo=UTC),
)
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE = ((0.96, 0.28, 0.0), (-0.2688, 0.9216, -0.28))
#: name -> modality, (depth, height, width), (depth, height, width) mm, directions
SOURCES = {
    "axial": ("MR", (12, 40, 48), (3.0, 1.0, 1.0), AXIAL),
    "sagittal": ("MR", (10, 64, 48), (2.0, 1.5, 1.5), SAGITTAL),
    "oblique": ("MR", (9, 32, 40), (2.5, 0.9, 1.1), OBLIQUE),
    "anisotropic": ("MR", (20, 256, 256), (6.0, 0.9, 0.9), AXIAL),
    "ct": ("CT", (8, 512, 512), (5.0, 0.7, 0.7), AXIAL),
}
CLASSES = {"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2"}
PATIENT = {
    "PatientID": "P-1",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19600102",
    "PatientSex": "F",
    "AccessionNumber": "A-1",
    "StudyID": "S1",
    "StudyDate": "20260131",
    "StudyTime": "101112",
    "ReferringPhysicianName": "Roe^Richard",
    "IssuerOfPatientID": "SITE",
    "PatientAge": "066Y",
    "StudyDescription": "Head",
    "Manufacturer": "Maker",
    "TimezoneOffsetFromUTC": "+0900",
    "PositionReferenceIndicator": "",
    "SliceThickness": 3.0,
    "BodyPartExamined": "HEAD",
}


class Source:
    """A synthetic series with one planted anomaly."""

    def __init__(self, kind="axial", **changed):
        self.modality, self.shape, spacing, (right, down) = SOURCES[kind]
        right, down = np.array(right), np.array(down)
        normal = np.cross(right, down)
        self.affine = np.eye(4)
        self.affine[:3, :3] = np.stack([normal, down, right], axis=1) * spacing
        self.affine[:3, 3] = (-33.0, -44.0, 55.0)
        attributes = {**PATIENT, **changed}
        self.headers = [
            self._header(k, spacing, right, down, attributes) for k in range(self.shape[0])
        ]
        rng = np.random.default_rng(1)
        self.voxels = rng.normal(40, 20, self.shape).astype(np.float32)
        self.map = np.zeros(self.shape, np.float32)
        depth, height, width = self.shape
        self.planted = (depth // 2, height // 4, width // 3)
        k, i, j = self.planted
        self.map[k - 1 : k + 2, i - 2 : i + 3, j - 2 : j + 3] = 4.0
        self.map[self.planted] = 8.0
        self.map[1, height - 6 : height - 3, 3:6] = 5.0
        self.findings, self.labels = locate(
            self.map, self.affine, threshold=3.0, min_volume_ml=0.0, max_findings=5
        )

    def _header(self, k, spacing, right, down, attributes):
        ds = Dataset()
        ds.SOPClassUID = CLASSES[self.modality]
        ds.SOPInstanceUID = f"1.2.3.4.{k + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
        ds.FrameOfReferenceUID, ds.Modality = "1.2.3.3", self.modality
        ds.Rows, ds.Columns = self.shape[1:]
        ds.PixelSpacing = [float(edge) for edge in spacing[1:]]
        ds.ImageOrientationPatient = [float(v) for v in (*right, *down)]
        position = (self.affine @ [k, 0, 0, 1])[:3]
        ds.ImagePositionPatient = [round(float(v), 8) for v in position]
        for keyword, value in attributes.items():
            if value is not None:
                setattr(ds, keyword, value)
        return ds

    def segmentation(self, score=SCORE):
        return make_segmentation(
            self.headers,
            self.labels,
            self.findings,
            score,
            node_id="node-1",
            series_number=9001,
            series_description="dicom_node anomaly SEG (research use only)",
        )

    def summary(self):
        layers = (self.voxels, self.map, self.labels, self.affine)
        return overlay.render_summary(*layers, self.findings, SCORE, modality=self.modality)

    def captures(self, slices="findings", **options):
        return list(
            make_secondary_captures(
                self.headers,
                self.voxels,
                self.map,
                self.labels,
                self.affine,
                self.summary(),
                SCORE,
                node_id="node-1",
                series_number=9100,
                series_description="dicom_node anomaly overlay (research use only)",
                slices=slices,
                **options,
            )
        )


def to_bytes(ds):
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def reread(ds):
    return pydicom.dcmread(BytesIO(to_bytes(ds)))


def errors_of(ds, folder):
    """What dciodvfy calls an error."""
    path = folder / "object.dcm"
    path.write_bytes(to_bytes(ds))
    return dciodvfy(path)


class EnhancedSource(Source):
    """An enhanced image as it is read from its file, with one anomaly in the second frame."""

    def __init__(self, path):
        read = volume.build([path])
        self.headers, self.voxels, self.affine = read.headers, read.voxels, read.affine
        self.modality, self.shape = "MR", read.voxels.shape
        self.map = np.zeros(self.shape, np.float32)
        self.map[1, 2, 3] = 8.0
        self.findings, self.labels = locate(
            self.map, self.affine, threshold=3.0, min_volume_ml=0.0, max_findings=5
        )
