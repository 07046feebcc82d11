"""How a series was acquired: one way of writing it, and when two series are of one group."""

import math

import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from dicom_node.errors import NotScorable
from dicom_node.signature import Tolerances, differences, group, signature
from tests.make.instances import Geometry, make_enhanced, make_instance, numbers
from tests.make.signatures import chest_ct, head_t1

SPACING_MM = (2.0, 1.0, 1.0)


def of(modality="MR", **attributes):
    return signature(make_instance(modality, **attributes), SPACING_MM)


# --- one header ---------------------------------------------------------------------------------


def test_a_classic_mr_series_is_described_by_its_attributes():
    found = of(
        ScanningSequence=["IR", "GR"],
        SequenceVariant=["SP", "MP", "SK"],
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
        EchoTime=2.4,
        RepetitionTime=1900,
        InversionTime=900,
        MagneticFieldStrength=3,
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
    )
    assert found == head_t1(slice_spacing_mm=2.0)
    assert found.inferred == ()


def test_a_classic_ct_series_is_described_by_its_attributes():
    header = make_instance("CT", KVP=120, ConvolutionKernel="lung", BodyPartExamined="THORAX")
    assert signature(header, (1.5, 0.75, 0.75)) == chest_ct()


def enhanced(**changes):
    """An enhanced MPRAGE as scanners write it: nothing where a classic image has it."""
    ds = make_enhanced("MR", Geometry(orientation=(0, 1, 0, 0, 0, -1)), **changes)
    for keyword in ("ScanningSequence", "SequenceVariant", "EchoTime", "RepetitionTime"):
        delattr(ds, keyword)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    ds.EchoPulseSequence, ds.EchoPlanarPulseSequence = "GRADIENT", "NO"
    ds.SteadyStatePulseSequence, ds.SegmentedKSpaceTraversal = "NONE", "SINGLE"
    ds.MagneticFieldStrength = 3
    timing, modifier, echo = Dataset(), Dataset(), Dataset()
    timing.RepetitionTime = 1900
    modifier.InversionRecovery, modifier.InversionTimes, modifier.Spoiling = "YES", [900.0], "RF"
    echo.EffectiveEchoTime = 2.4
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.MRTimingAndRelatedParametersSequence, shared.MRModifierSequence = [timing], [modifier]
    ds.PerFrameFunctionalGroupsSequence[0].MREchoSequence = [echo]
    return ds


@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_image_has_the_signature_of_a_classic_series(shared):
    found = signature(enhanced(shared=shared), (1.0, 1.0, 1.0))
    assert found == head_t1(sequence_variant=("SP",))
    assert dict(found.inferred).keys() == {"scanning_sequence", "sequence_variant"}


def test_private_groups_of_an_enhanced_image_are_not_asked():
    ds = enhanced()
    item = Dataset()
    item.EchoTime = 77
    block = ds.SharedFunctionalGroupsSequence[0].private_block(0x2005, "VENDOR", create=True)
    block.add_new(0x01, "SQ", [item])
    assert signature(ds, SPACING_MM).echo_time_ms == 2.4


@pytest.mark.parametrize(
    ("written", "tesla"),
    [("3", 3.0), ("1.494", 1.5), ("2.89362", 2.9), ("0.064", 0.064), ("15000", 1.5), (None, None)],
)
def test_a_field_strength_is_in_tesla_whatever_was_written(written, tesla):
    changes = {} if written is None else {"MagneticFieldStrength": written}
    assert of(**changes).field_strength_t == tesla


@pytest.mark.parametrize("written", ["0", "-5", ""])
def test_a_time_that_does_not_apply_is_missing(written):
    assert of(InversionTime=written).inversion_time_ms is None


@pytest.mark.parametrize("written", ["NaN", "inf", "1e999", "long", "5,0"])
def test_a_value_that_is_no_number_counts_as_missing(written):
    ds = make_instance("MR")
    del ds.EchoTime
    with disable_value_validation():  # a damaged header: the tag's representation forbids the text
        ds.add_new("EchoTime", "LO", written)
        assert signature(ds, SPACING_MM).echo_time_ms is None


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"], ("ORIGINAL", "M")),
        (["ORIGINAL", "PRIMARY", "P"], ("ORIGINAL", "P")),
        (["ORIGINAL", "PRIMARY", "MPR"], ("ORIGINAL", "MPR")),
        (["DERIVED", "SECONDARY", "", "R"], ("DERIVED",)),
        (["DERIVED", "PRIMARY"], ("DERIVED",)),
        ("ORIGINAL", ("ORIGINAL",)),
        (None, ()),
    ],
)
def test_of_the_image_type_origin_and_kind_count(written, found):
    assert of(ImageType=written).image_type == found


@pytest.mark.parametrize(
    ("degrees", "plane"), [(0, "axial"), (25, "axial"), (35, "oblique"), (55, "oblique"),
                           (65, "coronal"), (90, "coronal")]
)  # fmt: skip
def test_a_stack_far_from_each_plane_is_oblique(degrees, plane):
    turned = (1, 0, 0, 0, math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    assert of(ImageOrientationPatient=numbers(turned)).orientation == plane


@pytest.mark.parametrize("values", [None, [1, 0, 0], [0] * 6, [1, 0, 0, 1, 0, 0]])
def test_directions_that_span_no_plane_are_no_orientation(values):
    assert of(ImageOrientationPatient=values).orientation is None


def test_several_values_of_a_kernel_are_one_kernel():
    assert of("CT", ConvolutionKernel=["Br38f", "3"]).kernel == "BR38F-3"


def test_a_body_part_is_guessed_only_where_none_is_written_and_this_is_said():
    stated = of(BodyPartExamined="BRAIN", StudyDescription="Knee")
    assert (stated.body_part, stated.body_part_as_sent, stated.inferred) == ("HEAD", "BRAIN", ())
    guessed = of(BodyPartExamined="", StudyDescription="Knee left")
    assert (guessed.body_part, guessed.body_part_as_sent) == ("KNEE", None)
    assert guessed.inferred == (("body_part", "a guess from StudyDescription"),)


def test_a_region_that_is_coded_goes_before_a_guess():
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "12738006", "SCT", "Brain"
    ds = make_enhanced("MR", BodyPartExamined=None, StudyDescription="Knee")
    anatomy = Dataset()
    anatomy.AnatomicRegionSequence = [item]
    ds.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]
    found = signature(ds, SPACING_MM)
    assert found.body_part == "HEAD"
    assert found.inferred == (("body_part", "Anatomic Region Sequence"),)


def test_nothing_of_the_patient_is_in_a_signature():
    private = "Doe Jane brain 1970"
    found = of(
        PatientName=private,
        PatientID="secret-7",
        StudyDescription=private,
        SeriesDescription=private,
        ProtocolName=private,
        BodyPartExamined=None,
    )
    assert found.body_part == "HEAD"
    assert not [word for word in ("Doe", "DOE", "1970", "secret") if word in repr(found)]


@pytest.mark.parametrize("modality", ["SEG", "", None])
def test_what_is_neither_ct_nor_mr_has_no_signature(modality):
    with pytest.raises(NotScorable, match=f"Modality is {modality or 'missing'}"):
        of(Modality=modality)


# --- two signatures -----------------------------------------------------------------------------

UNLIKE = {
    "modality": ("CT", "modality is CT in one and MR in the other"),
    "body_part": (None, "body_part is HEAD in one and missing in the other"),
    "scanning_sequence": (("GR",), "scanning_sequence is GR in one and GR/IR in the other"),
    "sequence_variant": ((), "sequence_variant is MP/SK/SP in one and missing in the other"),
    "image_type": (
        ("DERIVED", "M"),
        "image_type is DERIVED/M in one and ORIGINAL/M in the other",
    ),
    "contrast_agent": (True, "contrast_agent is False in one and True in the other"),
    "echo_time_ms": (
        4.0,
        "echo_time_ms is 2.4 in one and 4 in the other, more than 1 apart",
    ),
    "repetition_time_ms": (
        3000.0,
        "repetition_time_ms is 1900 in one and 3000 in the other, more than 600 apart",
    ),
    "inversion_time_ms": (None, "inversion_time_ms is missing in one and 900 in the other"),
    "kvp": (120.0, "kvp is missing in one and 120 in the other"),
    "kernel": ("B", "kernel is B in one and missing in the other"),
    "orientation": ("axial", "orientation is axial in one and sagittal in the other"),
    "spacing_mm": (
        (1.0, 2.0),
        "spacing_mm is 1 in one and 2 in the other, more than 0.7 apart",
    ),
    "slice_spacing_mm": (
        1.2,
        "slice_spacing_mm is 1 in one and 1.2 in the other, more than 0.12 apart",
    ),
    "field_strength_t": (
        1.5,
        "field_strength_t is 1.5 in one and 3 in the other, more than 0.3 apart",
    ),
}


@pytest.mark.parametrize("field", UNLIKE)
def test_each_field_alone_keeps_two_series_apart_and_is_named(field):
    value, said = UNLIKE[field]
    one, other = head_t1(), head_t1(**{field: value})
    assert differences(one, other) == differences(other, one) == (said,)


def test_every_field_that_is_compared_is_tried_here():
    compared = {n for n, f in head_t1().__dataclass_fields__.items() if f.compare}
    assert set(UNLIKE) | {"b_value"} == compared


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (0.0, 1000.0, "b_value is 0 in one and 1000 in the other, more than 100 apart"),
        (0.0, 50.0, "b_value is 0 in one and 50 in the other, more than 10 apart"),
        (0.0, 5.0, None),
        (950.0, 1000.0, None),
        (None, 1000.0, None),
    ],
)
def test_b_values_keep_two_diffusion_volumes_apart_where_both_are_known(one, other, said):
    pair = head_t1(b_value=one), head_t1(b_value=other)
    assert differences(*pair) == differences(*pair[::-1]) == ((said,) if said else ())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (head_t1(), head_t1(echo_time_ms=3.2, repetition_time_ms=1600.0, spacing_mm=(0.9, 0.9))),
        (head_t1(field_strength_t=1.5), head_t1(field_strength_t=1.4)),
        (chest_ct(spacing_mm=(0.6, 0.6)), chest_ct(spacing_mm=(0.9, 0.9))),
        (head_t1(body_part_as_sent="BRAIN"), head_t1(body_part_as_sent="HEAD")),
    ],
)
def test_what_changes_from_patient_to_patient_keeps_nothing_apart(one, other):
    assert differences(one, other) == ()


@pytest.mark.parametrize(
    "other",
    [{"kvp": 100.0}, {"slice_spacing_mm": 2.0}, {"kernel": "BONE"}, {"spacing_mm": (0.4, 0.4)}],
)
def test_what_changes_how_a_ct_looks_keeps_apart(other):
    assert len(differences(chest_ct(), chest_ct(**other))) in {1, 2}


def test_echoes_in_and_out_of_phase_at_3_t_are_kept_apart():
    assert differences(head_t1(echo_time_ms=1.15), head_t1(echo_time_ms=2.3))


def test_tolerances_are_the_callers():
    wide = Tolerances(slice_spacing=0.5)
    assert differences(head_t1(), head_t1(slice_spacing_mm=2.0), wide) == ()
    assert differences(head_t1(), head_t1(slice_spacing_mm=2.1), wide)


def test_a_value_on_the_limit_is_within_it():
    assert differences(head_t1(slice_spacing_mm=0.9), head_t1(slice_spacing_mm=1.0)) == ()
    assert differences(head_t1(slice_spacing_mm=0.89), head_t1(slice_spacing_mm=1.0))


# --- many signatures ----------------------------------------------------------------------------


def times(*repetition_ms):
    return [head_t1(repetition_time_ms=float(value)) for value in repetition_ms]


def test_near_series_are_one_group_and_far_ones_another():
    found = group([*times(1900, 2000), chest_ct(), *times(1950)])
    assert sorted(entry.members for entry in found) == [(0, 1, 3), (2,)]


def test_a_chain_of_near_series_does_not_become_one_group():
    chain = times(500, 600, 720, 860, 1030, 1240, 1490, 1790)
    found = group(chain)
    assert len(found) >= 3
    for entry in found:
        assert all(differences(entry.founder, chain[place]) == () for place in entry.members)


def test_the_usual_series_founds_the_group():
    (only,) = group(times(1700, 2000, 2000, 2000, 2300))
    assert only.founder.repetition_time_ms == 2000


def test_a_founder_keeps_what_is_its_own_whatever_comes():
    founder, newcomers = times(1600)[0], times(1900, 1950, 2000, 2000, 2100)
    found = {entry.founder: entry.members for entry in group(newcomers, [founder])}
    # the last is too far from it, and nearer to the others than it is
    assert found == {founder: (0, 1, 2, 3), newcomers[4]: (4,)}


def test_a_series_between_two_founders_joins_the_nearer():
    low, high = times(1500, 2000)
    found = group(times(1700, 1800), [low, high])
    assert [(entry.founder, entry.members) for entry in found] == [(low, (0,)), (high, (1,))]


def test_no_series_make_no_groups():
    assert group([]) == ()
    assert group([], times(1900)) == ()
