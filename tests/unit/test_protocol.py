"""Which protocol claims a series: the first whose rule it fits; and why the others do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_node.errors import NoMatchingProtocol
from dicom_node.protocol import has_contrast, match, mismatches, orientation
from dicom_node.protocol_config import Match, Protocol
from tests.make.instances import Geometry, make_enhanced, make_instance

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
SPACING_MM = 1.2
#: field of the rule -> its value, what stands in the series instead, what is said of it
UNLIKE = {
    "modality": ("MR", {"Modality": "CT"}, "modality is CT, not MR"),
    "body_part": ("HEAD", {"BodyPartExamined": "CHEST"}, "body_part is CHEST, not HEAD"),
    "series_description": (
        "t1",
        {"SeriesDescription": "Doe Jane secret"},
        "series_description has no 't1'",
    ),
    "scanning_sequence": (
        ("GR", "IR"),
        {"ScanningSequence": ["SE", "IR"]},
        "scanning_sequence has no GR",
    ),
    "contrast_agent": (
        False,
        {"ContrastBolusAgent": "Gadovist"},
        "contrast_agent is True, not False",
    ),
    "orientation": (
        "axial",
        {"ImageOrientationPatient": list(SAGITTAL)},
        "orientation is sagittal, not axial",
    ),
    "slice_spacing_mm": ((0.5, 3.0), {}, "slice spacing is 5 mm, not 0.5 to 3"),
    "echo_time_ms": ((2.0, 3.0), {"EchoTime": 90}, "echo_time_ms is 90, not 2 to 3"),
    "repetition_time_ms": (
        (1500, 2500),
        {"RepetitionTime": 400},
        "repetition_time_ms is 400, not 1500 to 2500",
    ),
    "inversion_time_ms": (
        (800, 1000),
        {"InversionTime": 0},
        "inversion_time_ms is missing, not 800 to 1000",
    ),
    "field_strength_t": (
        (2.8, 3.2),
        {"MagneticFieldStrength": 15000},
        "field_strength_t is 1.5, not 2.8 to 3.2",
    ),
    "b_value": ((900, 1100), {"DiffusionBValue": 0.0}, "b_value is 0, not 900 to 1100"),
    "temporal_position": (
        (1, 1),
        {"TemporalPositionIdentifier": 2},
        "temporal_position is 2, not 1 to 1",
    ),
    "kvp": ((110, 130), {"KVP": 80}, "kvp is 80, not 110 to 130"),
    "kernel": ("^B7", {"ConvolutionKernel": ["Br40d", "3"]}, "kernel is BR40D-3, not like '^B7'"),
}
RULE = Match(**{field: value for field, (value, _, _) in UNLIKE.items()})


def series(**attributes):
    """A head MR that RULE claims, changed."""
    wanted = {
        "SeriesDescription": "Ax T1 MPRAGE",
        "ScanningSequence": ["GR", "IR"],
        "BodyPartExamined": "HEAD",
        "EchoTime": 2.4,
        "RepetitionTime": 1900,
        "InversionTime": 900,
        "MagneticFieldStrength": 3,
        "KVP": 120,
        "ConvolutionKernel": "b70f",
        "DiffusionBValue": 1000.0,
        "TemporalPositionIdentifier": 1,
    }
    return make_instance("MR", **(wanted | attributes))


def protocol(name, **rule):
    return Protocol(name=name, match=Match(**({"modality": "MR"} | rule)))


# --- the rule -----------------------------------------------------------------------------------


def test_a_rule_of_every_field_claims_the_series_that_it_describes():
    assert mismatches(RULE, series(), SPACING_MM) == []


def test_every_field_of_the_rule_is_tried_here():
    assert set(UNLIKE) == set(Match.model_fields)


@pytest.mark.parametrize("field", UNLIKE)
def test_each_field_alone_claims_and_turns_away(field):
    value, unlike, said = UNLIKE[field]
    rule = Match(**({"modality": "MR"} | {field: value}))
    assert mismatches(rule, series(), SPACING_MM) == []
    spacing_mm = 5.0 if field == "slice_spacing_mm" else SPACING_MM
    assert mismatches(rule, series(**unlike), spacing_mm) == [said]


@settings(deadline=None)
@given(differing=st.sets(st.sampled_from(sorted(UNLIKE))))
def test_the_reason_names_every_field_that_differs_and_no_other(differing):
    attributes = {}
    for field in differing:
        attributes |= UNLIKE[field][1]
    spacing_mm = 5.0 if "slice_spacing_mm" in differing else SPACING_MM
    found = mismatches(RULE, series(**attributes), spacing_mm)
    assert sorted(found) == sorted(UNLIKE[field][2] for field in differing)


@settings(deadline=None)
@given(given_fields=st.sets(st.sampled_from(sorted(set(UNLIKE) - {"modality"}))))
def test_a_field_that_is_not_given_matches_anything(given_fields):
    """A series unlike the rule in every way but the modality, and a rule of some fields."""
    attributes = {}
    for field in set(UNLIKE) - {"modality"}:
        attributes |= UNLIKE[field][1]
    rule = Match(modality="MR", **{field: UNLIKE[field][0] for field in given_fields})
    assert len(mismatches(rule, series(**attributes), 5.0)) == len(given_fields)


@pytest.mark.parametrize(
    ("field", "keyword", "said"),
    [
        ("modality", "Modality", "modality is missing, not MR"),
        ("body_part", "BodyPartExamined", "body_part is missing, not HEAD"),
        ("series_description", "SeriesDescription", "series_description has no 't1'"),
        ("scanning_sequence", "ScanningSequence", "scanning_sequence has no GR, IR"),
        ("orientation", "ImageOrientationPatient", "orientation is missing, not axial"),
    ],
)
@pytest.mark.parametrize("value", [None, ""], ids=["absent", "empty"])
def test_an_attribute_that_is_missing_is_no_match_and_is_said_to_be_missing(
    field, keyword, said, value
):
    rule = Match(**({"modality": "MR"} | {field: UNLIKE[field][0]}))
    assert mismatches(rule, series(**{keyword: value}), SPACING_MM) == [said]


def test_an_empty_series_matches_a_rule_of_the_modality_alone():
    ds = Dataset()
    ds.Modality = "MR"
    assert mismatches(Match(modality="MR"), ds, SPACING_MM) == []


# --- single attributes --------------------------------------------------------------------------


@pytest.mark.parametrize("found", ["HEAD", "head", " Head "])
def test_the_body_part_is_compared_without_case_and_blanks(found):
    ds = Dataset()
    ds.Modality = "MR"
    with disable_value_validation():  # senders write what the value representation forbids
        ds.BodyPartExamined = found
    assert mismatches(Match(modality="MR", body_part="head"), ds, SPACING_MM) == []


@pytest.mark.parametrize(
    ("pattern", "description", "claimed"),
    [
        ("t1", "AX T1 SE", True),
        ("T1", "ax t1 se", True),
        ("^t1", "ax t1", False),
        ("t1.*(tra|ax)", "T1 SE TRA", True),
        ("t1(?!.*gad)", "t1 gad", False),
        ("", "", True),
        (r"\d", "thoräx 3D", True),
    ],
)
def test_the_description_is_searched_for_the_pattern_without_case(pattern, description, claimed):
    rule = Match(modality="MR", series_description=pattern)
    faults = mismatches(rule, series(SeriesDescription=description), SPACING_MM)
    assert (faults == []) == claimed


@pytest.mark.parametrize(
    ("wanted", "found", "missing"),
    [
        (("GR",), "GR", ""),
        (("GR",), ["GR", "IR"], ""),
        (("IR", "GR"), ["GR", "IR", "EP"], ""),
        (("GR",), ["SE"], "GR"),
        (("GR", "IR"), "GR", "IR"),
        (("SE", "IR", "EP"), ["GR"], "EP, IR, SE"),
        ((), ["SE"], ""),
        ((), None, ""),
    ],
)
def test_all_scanning_sequence_values_of_the_rule_must_be_there(wanted, found, missing):
    rule = Match(modality="MR", scanning_sequence=wanted)
    faults = mismatches(rule, series(ScanningSequence=found), SPACING_MM)
    assert faults == ([f"scanning_sequence has no {missing}"] if missing else [])


def coded_agent():
    """An item of Contrast/Bolus Agent Sequence."""
    item, code = Dataset(), Code("412372002", "SCT", "Meglumine gadopentetate")
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


@pytest.mark.parametrize(
    ("attributes", "contrast"),
    [
        ({}, False),
        ({"ContrastBolusAgent": ""}, False),
        ({"ContrastBolusAgent": "  "}, False),
        ({"ContrastBolusAgent": "None"}, False),
        ({"ContrastBolusAgent": "Ultravist 300"}, True),
        ({"ContrastBolusAgentSequence": []}, False),
        ({"ContrastBolusAgentSequence": [coded_agent()]}, True),
    ],
)
def test_contrast_is_an_agent_that_is_named_as_text_or_as_a_code(attributes, contrast):
    ds = series(**attributes)
    assert has_contrast(ds) is contrast
    for wanted in (True, False):
        rule = Match(modality="MR", contrast_agent=wanted)
        assert (mismatches(rule, ds, SPACING_MM) == []) == (wanted is contrast)


@pytest.mark.parametrize(
    ("spacing_mm", "claimed"),
    [(0.5, True), (3.0, True), (1.75, True), (0.499, False), (3.001, False)],
)
def test_slice_spacing_matches_from_bound_to_bound(spacing_mm, claimed):
    rule = Match(modality="MR", slice_spacing_mm=(0.5, 3.0))
    assert (mismatches(rule, series(), spacing_mm) == []) == claimed


# --- orientation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "plane"),
    [
        (AXIAL, "axial"),
        ((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), "axial"),
        (CORONAL, "coronal"),
        (SAGITTAL, "sagittal"),
        ((0.96, 0.28, 0.0, -0.2688, 0.9216, -0.28), "axial"),
        ((0.96, 0.0, 0.28, 0.0, 1.0, 0.0), "axial"),
        ((1.0, 0.0, 0.0, 0.0, 0.6, -0.8), "coronal"),
        ((1.0, 0.0, 0.0, 0.0, 0.8, -0.6), "axial"),
    ],
)
def test_the_plane_is_the_one_nearest_to_the_slices(values, plane):
    geometry = Geometry(orientation=values)
    assert orientation(make_instance("MR", geometry)) == plane
    assert orientation(make_enhanced("MR", geometry)) == plane
    assert orientation(make_enhanced("MR", geometry, shared=False)) == plane


@given(angles=st.tuples(*[st.floats(-30, 30)] * 2), plane=st.sampled_from([0, 1, 2]))
def test_a_tilt_below_45_degrees_in_all_does_not_change_the_plane(angles, plane):
    """The normal is still nearest to its axis: turned about one other axis, then the second."""
    first, second = np.radians(angles)
    row, column = np.roll(np.eye(3)[1:], plane, axis=1)
    axes = np.stack([row, column, np.cross(row, column)])  # rows: row, column, normal
    one = np.array(
        [[1, 0, 0], [0, np.cos(first), -np.sin(first)], [0, np.sin(first), np.cos(first)]]
    )
    two = np.array(
        [[np.cos(second), 0, np.sin(second)], [0, 1, 0], [-np.sin(second), 0, np.cos(second)]]
    )
    turned = one @ two @ axes
    ds = Dataset()
    ds.ImageOrientationPatient = [f"{value:.8f}" for value in turned[:2].ravel()]
    assert orientation(ds) == ("sagittal", "coronal", "axial")[plane]


def test_no_geometry_is_no_plane():
    ds = Dataset()
    assert orientation(ds) is None
    ds.ImageOrientationPatient = None
    assert orientation(ds) is None
    ds.ImageOrientationPatient = [1, 0, 0]
    assert orientation(ds) is None
    ds.SharedFunctionalGroupsSequence = []
    ds.PerFrameFunctionalGroupsSequence = [Dataset()]
    assert orientation(ds) is None


def test_an_enhanced_image_is_matched_by_its_functional_groups():
    rule = Match(modality="MR", orientation="coronal")
    assert mismatches(rule, make_enhanced("MR", Geometry(orientation=CORONAL)), SPACING_MM) == []
    assert mismatches(rule, make_enhanced("MR", Geometry(orientation=AXIAL)), SPACING_MM) == [
        "orientation is axial, not coronal"
    ]


# --- the choice ---------------------------------------------------------------------------------


def test_the_first_protocol_that_matches_claims_the_series():
    wide, narrow = protocol("wide"), protocol("narrow", body_part="HEAD")
    assert match([wide, narrow], series(), SPACING_MM) is wide
    assert match([narrow, wide], series(), SPACING_MM) is narrow
    chest = series(BodyPartExamined="CHEST")
    assert match([narrow, wide], chest, SPACING_MM) is wide


def test_the_reason_says_per_protocol_what_did_not_match_and_never_the_description():
    rules = [
        protocol("one", series_description="flair", body_part="NECK"),
        protocol("two", modality="CT"),
    ]
    ds = series(SeriesDescription="DOE JANE 1970 t1")
    with pytest.raises(NoMatchingProtocol) as caught:
        match(rules, ds, SPACING_MM)
    assert str(caught.value) == (
        "no [[protocol]] matches; one: body_part is HEAD, not NECK; "
        "series_description has no 'flair' | two: modality is MR, not CT"
    )
    assert "DOE" not in str(caught.value)


def test_a_configuration_without_protocols_says_so():
    with pytest.raises(NoMatchingProtocol, match="the configuration has none"):
        match([], series(), SPACING_MM)
