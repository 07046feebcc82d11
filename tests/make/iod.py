"""What two validators find wrong with an object: dciodvfy, and types 1 and 2 by the standard's own
tables as highdicom bundles them (dicom-validator works only on line)."""

import subprocess
import tempfile
from pathlib import Path

import pydicom
from highdicom._standard_utils import (
    get_iod_module_map,
    get_module_attribute_map,
    get_sop_class_iod_map,
)

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
#: what PS3.3 C.8.20.2 says of label maps alone, as the dciodvfy of 2022 has it
_OF_LABEL_MAPS = (
    "Unrecognized enumerated value = <LABELMAP>",
    "SegmentNumber not monotonically increasing from one by one",
    "SegmentNumber(0062,0004)[1]> - Value is zero",
    "SegmentIdentificationSequence(0062,000a)> - Missing attribute",
)


def faults(path):
    """Errors of dciodvfy and missing or empty mandatory attributes; empty for a valid object."""
    return [*dciodvfy(path), *_types(pydicom.dcmread(path))]


def dciodvfy(path):
    """What it calls an error. A label map, which it does not know, is shown to it as the older
    segmentation, and what differs by the standard is not counted."""
    ds = pydicom.dcmread(path)
    if ds.SOPClassUID != LABEL_MAP:
        return _errors(path)
    older = "1.2.840.10008.5.1.4.1.1.66.4"
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = older
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "older.dcm"
        ds.save_as(shown)
        return [line for line in _errors(shown) if not any(of in line for of in _OF_LABEL_MAPS)]


def _errors(path):
    run = subprocess.run(
        ["/usr/bin/dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False
    )
    said = run.stdout + run.stderr
    assert said.strip(), "dciodvfy names the IOD at least"
    return [line for line in said.splitlines() if line.startswith("Error")]


def _types(ds):
    """Type 1 attributes that are missing or empty, type 2 ones that are missing."""
    modules, attributes = get_iod_module_map(), get_module_attribute_map()
    iod = get_sop_class_iod_map()[ds.SOPClassUID]
    mandatory = [module["key"] for module in modules[iod] if module["usage"] == "M"]
    # what a content item holds depends on its value type, which the table does not know
    mandatory = [key for key in mandatory if key != "sr-document-content"]
    found = set()
    for module in mandatory:
        # a functional group may stand in either of two sequences, which the table does not know
        for attribute in attributes[module]:
            if attribute["type"] in ("1", "2") and not _in_functional_groups(attribute["path"]):
                found |= set(_missing(ds, module, attribute))
    return sorted(found)


def _in_functional_groups(path):
    return path[:1] in (
        ["SharedFunctionalGroupsSequence"],
        ["PerFrameFunctionalGroupsSequence"],
    )


def _missing(ds, module, attribute):
    keyword, path = attribute["keyword"], attribute["path"]
    for item in _items(ds, path):
        name = f"type {attribute['type']} {module}: {'>'.join([*path, keyword])}"
        if keyword not in item:
            yield f"{name} is missing"
        elif attribute["type"] == "1" and item[keyword].is_empty:
            yield f"{name} is empty"


def _items(ds, path):
    found = [ds]
    for keyword in path:
        found = [inner for item in found for inner in item.get(keyword) or []]
    return found
