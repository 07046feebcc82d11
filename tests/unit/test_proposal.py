"""What a site could write for series that no rule claims: names, and rules that claim them."""

import re
import tomllib
from pathlib import Path

import pytest

from dicom_node import config
from dicom_node.config import NodeConfig
from dicom_node.config_types import Scale
from dicom_node.proposal import kernel_kind, proposed_name, toml, unused_name, weighting
from dicom_node.protocol import match, mismatches
from dicom_node.protocol_config import Protocol
from dicom_node.signature import signature
from tests.make.instances import make_enhanced, make_instance
from tests.make.signatures import chest_ct, head_t1, spin_echo

# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (head_t1(orientation="axial"), "mr-head-t1-axial-1mm"),
        (head_t1(contrast_agent=True), "mr-head-t1-contrast-sagittal-1mm"),
        (spin_echo(90.0, 3000.0, slice_spacing_mm=3.313), "mr-head-t2-sagittal-3_3mm"),
        (chest_ct(), "ct-chest-lung-1_5mm"),
        (chest_ct(orientation="coronal"), "ct-chest-lung-coronal-1_5mm"),
        (chest_ct(kernel=None, body_part=None, slice_spacing_mm=0.625), "ct-0_62mm"),
        (chest_ct(kernel="MY-OWN FILTER 7", slice_spacing_mm=150.0), "ct-chest-my-150mm"),
        (head_t1(body_part="ELSÄSSER BEIN", echo_time_ms=None), "mr-elssserbein-sagittal-1mm"),
    ],
)
def test_a_name_says_region_look_plane_and_slice_spacing(made, name):
    assert proposed_name(made) == name


def test_a_long_region_gives_way_to_the_rest_of_the_name():
    name = proposed_name(chest_ct(body_part="A" * 60, contrast_agent=True, orientation="sagittal"))
    assert len(name) == 40
    assert name.endswith("a-lung-contrast-sagittal-1_5mm")


def test_a_name_that_is_taken_gets_the_next_number():
    assert unused_name("head", set()) == "head"
    assert unused_name("head", {"head"}) == "head-2"
    assert unused_name("head", {"head", "head-2"}) == "head-3"
    long = "x" * 40
    assert unused_name(long, {long}) == "x" * 38 + "-2"


# --- contrast and kernel ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequence", "times", "word"),
    [
        (("GR", "IR"), (2.98, 1900, 900), "t1"),
        (("GR",), (3.16, 8.9, None), "t1"),
        (("GR",), (20, 28, None), "t2s"),
        (("GR",), (5, 600, None), "pd"),
        (("SE",), (12, 500, None), "t1"),
        (("SE",), (60, 500, None), ""),
        (("SE",), (12, 4000, None), "pd"),
        (("SE",), (90, 4000, None), "t2"),
        (("IR", "SE"), (394, 6000, 2200), "flair"),
        (("IR", "SE"), (194, 4000, 1400), "flair"),
        (("IR", "SE"), (10, 2000, 1400), "t1"),
        (("IR",), (64, 4400, 140), "stir"),
        (("EP", "SE"), (82, 9000, None), "dwi"),
        (("EP", "GR"), (30, 2500, None), "epi"),
        ((), (3.4, 6.2, None), "t1"),
        ((), (90, 4000, None), "t2"),
        (("SE",), (None, 4000, None), ""),
        (("SE",), (90, None, None), ""),
        ((), (None, None, None), ""),
    ],
)
def test_the_contrast_is_read_off_the_times_as_a_radiologist_does(sequence, times, word):
    echo, repetition, inversion = times
    made = spin_echo(echo, repetition, inversion_time_ms=inversion, scanning_sequence=sequence)
    assert weighting(made) == word


def test_what_an_enhanced_image_says_of_its_contrast_goes_before_the_times():
    assert weighting(head_t1(image_type=("ORIGINAL", "T2_STAR"))) == "t2s"
    assert weighting(head_t1(image_type=("DERIVED", "ADC"))) == "adc"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("LUNG", "lung"),
        ("L", "lung"),
        ("BL57D-3", "lung"),
        ("FC51", "lung"),
        ("BONEPLUS", "bone"),
        ("FC30", "bone"),
        ("B70F", "sharp"),
        ("BR59", "sharp"),
        ("B30F", "soft"),
        ("BR38F-3", "soft"),
        ("STANDARD", "soft"),
        ("FC21", "soft"),
        ("B", "soft"),
        ("DETAIL", "DETAIL"),
        (None, ""),
    ],
)
def test_a_kernel_is_named_for_what_it_is_for(kernel, kind):
    assert kernel_kind(kernel) == kind


# --- rules --------------------------------------------------------------------------------------


def parsed(text):
    """The one protocol of a text, as the node reads it."""
    (found,) = NodeConfig.model_validate(tomllib.loads(text)).protocol
    return found


@pytest.mark.parametrize(
    ("modality", "attributes"),
    [
        ("MR", {}),
        ("MR", {"BodyPartExamined": None}),
        ("MR", {"BodyPartExamined": "BRAIN", "ScanningSequence": ["IR", "GR"]}),
        ("MR", {"ContrastBolusAgent": "Gadovist"}),
        ("MR", {"ScanningSequence": None}),
        ("MR", {"ImageOrientationPatient": None}),
        ("MR", {"ImageOrientationPatient": [1, 0, 0, 0, 0.8, 0.6]}),
        ("CT", {"BodyPartExamined": "CHEST", "ConvolutionKernel": ["Br38f", "3"]}),
        ("CT", {"BodyPartExamined": None, "StudyDescription": "Thorax"}),
    ],
)
@pytest.mark.parametrize("spacing_mm", [0.2, 0.9374999, 5.0, 12.0])
def test_the_rule_is_valid_and_claims_the_series_that_it_was_made_from(
    modality, attributes, spacing_mm
):
    header = make_instance(modality, **attributes)
    found = signature(header, (spacing_mm, 1.0, 1.0))
    made = parsed(toml(found, proposed_name(found)))
    assert match([made], header, spacing_mm) is made
    assert made.mode == "shadow"


def test_the_rule_of_an_enhanced_image_claims_it():
    ds = make_enhanced("MR")
    del ds.ScanningSequence
    ds.EchoPulseSequence = "GRADIENT"
    found = signature(ds, (2.0, 1.0, 1.0))
    assert found.scanning_sequence == ("GR",)
    assert mismatches(parsed(toml(found, "enhanced")).match, ds, 2.0) == []


def test_the_rule_turns_away_another_contrast_agent_plane_sequence_and_spacing():
    ds = make_instance("MR", ScanningSequence="GR")
    rule = parsed(toml(signature(ds, (1.0, 1.0, 1.0)), "head")).match
    other = make_instance(
        "MR",
        BodyPartExamined="KNEE",
        ScanningSequence="SE",
        ContrastBolusAgent="Gadovist",
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
    )
    assert len(mismatches(rule, other, 1.2)) == 5, mismatches(rule, other, 1.2)
    assert mismatches(rule, ds, 1.1) == []


def test_all_series_within_tolerance_of_the_spacing_are_claimed():
    rule = parsed(toml(head_t1(slice_spacing_mm=1.0), "head")).match
    assert rule.slice_spacing_mm[0] <= 0.9
    assert rule.slice_spacing_mm[1] >= 1.0 / 0.9


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (head_t1(), {"intensity": "percentiles", "calibration": "position", "spacing_mm": 1.0}),
        (
            head_t1(body_part="KNEE"),
            {"extent_mm": (168.0, 196.0, 168.0), "calibration": "analogue"},
        ),
        (head_t1(body_part="ABDOMEN"), {"extent_mm": (392.0, 392.0, 392.0), "spacing_mm": 2.0}),
        (chest_ct(), {"window_hu": (-600.0, 1500.0), "calibration": "analogue", "spacing_mm": 1.0}),
        (chest_ct(), {"foreground": "lung", "scales": (Scale(upsampling=2).model_dump(),)}),
        (chest_ct(body_part="ABDOMEN"), {"foreground": "body", "spacing_mm": 2.0}),
        (chest_ct(body_part="HEAD"), {"window_hu": (40.0, 80.0), "calibration": "position"}),
        (chest_ct(body_part=None), {"window_hu": (40.0, 400.0), "body_part": None}),
        (chest_ct(inferred=(("body_part", "a guess"),)), {"body_part": "CHEST"}),
        (chest_ct(body_part="KÖRPER", inferred=(("body_part", "a guess"),)), {"body_part": None}),
    ],
)
def test_the_method_fits_the_region(made, expected):
    found = parsed(toml(made, "proposed")).model_dump()
    assert {name: found[name] for name in expected} == expected


def test_the_rule_asks_for_times_field_strength_voltage_and_kernel():
    rule = parsed(toml(spin_echo(90.0, 4000.0), "head")).match
    assert rule.echo_time_ms == (76.5, 105.89)
    assert rule.repetition_time_ms == (3200.0, 5000.0)
    assert rule.inversion_time_ms is None
    assert rule.field_strength_t == (2.7, 3.34)
    rule = parsed(toml(chest_ct(), "chest")).match
    assert rule.kvp == (114.0, 126.32)
    assert rule.kernel == "^LUNG$"


def test_the_rule_claims_what_it_was_made_from_and_not_another_contrast():
    times = {"EchoTime": 90, "RepetitionTime": 4000, "MagneticFieldStrength": 3}
    ds = make_instance("MR", ScanningSequence="SE", **times)
    rule = parsed(toml(signature(ds, (2.0, 1.0, 1.0)), "t2")).match
    assert mismatches(rule, ds, 2.0) == []
    other = make_instance("MR", ScanningSequence="SE", **(times | {"EchoTime": 12}))
    assert mismatches(rule, other, 2.0) == ["echo_time_ms is 12, not 76.5 to 105.89"]


def test_what_would_narrow_the_rule_is_said():
    text = toml(spin_echo(90.0, 4000.0), "head")
    assert '# series_description = "t2"' in text
    assert "claims every region" in text
    assert "claims every region" not in toml(head_t1(body_part_as_sent="HEAD"), "head")


@pytest.mark.parametrize(
    "odd", ['A"B', "A\\B", "A\nmode = 1", "A\x7fB", "Ä☃", "\U0001f9e0", "A\tB", "]\n[[protocol]]"]
)
def test_odd_values_of_a_header_stay_values_in_the_text(odd):
    text = toml(chest_ct(body_part_as_sent=odd, kernel=odd), "odd")
    assert parsed(text).match.body_part == odd
    mr = toml(head_t1(scanning_sequence=(odd,)), "odd")
    assert parsed(mr).match.scanning_sequence == (odd,)


def test_the_text_can_be_added_to_the_example_file(tmp_path):
    example = (Path(__file__).parents[2] / "config.example.toml").read_text("utf-8")
    path = tmp_path / "config.toml"
    name = proposed_name(chest_ct())
    path.write_text(f"{example}\n{toml(chest_ct(), name)}", "utf-8")
    assert config.load(path).protocol_named(name).match.modality == "CT"


def test_a_proposed_name_is_one_that_the_configuration_takes():
    pattern = Protocol.model_fields["name"].metadata[0].pattern
    assert re.fullmatch(pattern, proposed_name(chest_ct(body_part="-", kernel="-")))
