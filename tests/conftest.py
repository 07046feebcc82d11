"""What every test gets: pydicom's validation raises, none of the user's DICOM_NODE_*."""

import os
from pathlib import Path

import pydicom.config
import pytest

import dicom_node.anomaly  # noqa: F401 - its guard must run before any test imports timm


@pytest.fixture(autouse=True)
def _strict_pydicom():
    before = (
        pydicom.config.settings.reading_validation_mode,
        pydicom.config.settings.writing_validation_mode,
    )
    pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
    pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE
    yield
    pydicom.config.settings.reading_validation_mode = before[0]
    pydicom.config.settings.writing_validation_mode = before[1]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("DICOM_NODE_") and name not in {"DICOM_NODE_CACHE", "DICOM_NODE_SHARED"}:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the clone; a run without it must say so, not pass."""
    folder = (
        Path(os.environ.get("DICOM_NODE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    )
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: real images are not part of the repository")
    return folder
