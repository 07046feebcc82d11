"""The parametric map: valid, the same numbers at the same place to every reader."""

import subprocess
import sys
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as everybody calls it

from dicom_node.errors import ObjectError
from dicom_node.objects.parametric_map import make_parametric_map
from tests.make.instances import Geometry, make_enhanced, write
from tests.make.results import (
    SCORE,
    SOURCES,
    EnhancedSource,
    Source,
    errors_of,
    reread,
    to_bytes,
)

READER = Path(sys.prefix) / "bin" / "paramap2itkimage"


def parametric_map(source, values=None):
    return make_parametric_map(
        source.headers,
        source.map if values is None else values,
        SCORE,
        node_id="node-1",
        series_number=9005,
        series_description="dicom_node anomaly map (research use only)",
    )


@pytest.mark.parametrize("kind", sorted(set(SOURCES) - {"ct", "anisotropic"}))
def test_maps_have_no_error(kind, tmp_path):
    assert errors_of(parametric_map(Source(kind)), tmp_path) == []


@pytest.mark.parametrize("part", ["", "LEG", "CHEST"])
def test_no_laterality_is_asked_for_whatever_the_body_part(part, tmp_path):
    made = parametric_map(Source(BodyPartExamined=part))
    assert errors_of(made, tmp_path) == []
    assert "Laterality" not in made


def test_an_enhanced_source_has_its_map_too(tmp_path):
    enhanced = make_enhanced("MR", Geometry(rows=24, columns=20, n_slices=9), range(9))
    source = EnhancedSource(write(enhanced, tmp_path / "enhanced.dcm"))
    assert errors_of(parametric_map(source), tmp_path) == []


def test_highdicom_reads_the_same_numbers_at_the_same_place():
    source = Source("oblique")
    made = hd.pm.ParametricMap.from_dataset(reread(parametric_map(source)))
    volume = made.get_volume()
    (peak,) = np.argwhere(volume.array == source.map.max())
    world = volume.map_indices_to_reference(peak[None])[0]
    assert world == pytest.approx(source.findings[0].peak_mm, abs=0.01)
    assert np.sort(volume.array.ravel()) == pytest.approx(np.sort(source.map.ravel()))


def test_dcmqi_reads_the_same_numbers_at_the_same_place(tmp_path):
    source = Source("oblique")
    path = tmp_path / "pm.dcm"
    path.write_bytes(to_bytes(parametric_map(source)))
    call = [str(READER), "--inputDICOM", str(path), "--outputDirectory", str(tmp_path)]
    subprocess.run(call, check=True, capture_output=True)
    image = sitk.ReadImage(str(tmp_path / "pmap.nrrd"))
    values = sitk.GetArrayFromImage(image)
    (peak,) = np.argwhere(values == source.map.max())
    world = image.TransformIndexToPhysicalPoint([int(at) for at in peak[::-1]])
    assert world == pytest.approx(source.findings[0].peak_mm, abs=0.01)
    assert np.sort(values.ravel()) == pytest.approx(np.sort(source.map.ravel()))


def test_it_is_the_same_bytes_when_made_again_and_says_what_it_is():
    one, two = parametric_map(Source()), parametric_map(Source())
    assert to_bytes(one) == to_bytes(two)
    assert one.ContentQualification == "RESEARCH"
    assert "research" in one.SeriesDescription
    (mapping,) = one.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert mapping.LUTLabel == "anomaly"
    assert one.PatientID == "P-1"


def test_a_map_of_another_size_is_refused():
    source = Source()
    with pytest.raises(ObjectError, match="the map is"):
        parametric_map(source, source.map[1:])
