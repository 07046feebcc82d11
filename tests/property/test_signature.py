"""Groups of signatures: partitions that no order changes and no newcomer disturbs."""

import tomllib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.config import NodeConfig
from dicom_node.errors import NotScorable
from dicom_node.proposal import proposed_name, toml, unused_name
from dicom_node.protocol import mismatches
from dicom_node.signature import differences, group, signature
from tests.make.instances import make_instance
from tests.make.signatures import chest_ct, head_t1

#: a busy machine is no fault of the code
QUICK = settings(deadline=None, max_examples=60)


@st.composite
def a_signature(draw):
    """Near one of two usual series, in one or two fields."""
    base = draw(st.sampled_from([head_t1(), chest_ct()]))
    changes = {
        "slice_spacing_mm": draw(st.sampled_from([1.0, 1.08, 1.16, 1.25, 1.5, 3.0])),
        "spacing_mm": (draw(st.sampled_from([0.5, 0.7, 1.0])),) * 2,
        "body_part": draw(st.sampled_from(["HEAD", "CHEST", None])),
    }
    if base.modality == "MR":
        changes["repetition_time_ms"] = draw(st.sampled_from([500.0, 620.0, 750.0, None]))
        changes["echo_time_ms"] = draw(st.sampled_from([2.4, 3.0, 30.0]))
    chosen = draw(st.sets(st.sampled_from(sorted(changes)), max_size=2))
    inferred = draw(st.sampled_from([(), (("body_part", "a guess"),)]))
    return replace(base, **{name: changes[name] for name in chosen}, inferred=inferred)


many = st.lists(a_signature(), max_size=14)


def partition(groups, order=None):
    """The groups as sets of members, named as before a shuffle."""
    return {frozenset(order[m] if order else m for m in entry.members) for entry in groups}


@QUICK
@given(a_signature(), a_signature())
def test_differences_are_symmetric_and_none_to_oneself(one, other):
    assert differences(one, other) == differences(other, one)
    assert differences(one, one) == ()
    if one == other:
        assert differences(one, other) == ()


@QUICK
@given(many, many)
def test_every_series_is_in_one_group_and_near_its_founder(signatures, founders):
    groups = group(signatures, founders)
    assert sorted(m for entry in groups for m in entry.members) == list(range(len(signatures)))
    for entry in groups:
        assert entry.founder in [*signatures, *founders]
        assert entry.members == tuple(sorted(entry.members))
        for member in entry.members:
            assert differences(signatures[member], entry.founder) == ()


@QUICK
@given(many)
def test_no_two_groups_could_have_had_one_founder(signatures):
    founders = [entry.founder for entry in group(signatures)]
    for place, one in enumerate(founders):
        assert all(differences(one, other) for other in founders[place + 1 :])


@QUICK
@given(st.data(), many, many)
def test_neither_the_order_of_series_nor_of_founders_matters(data, signatures, founders):
    order = data.draw(st.permutations(range(len(signatures))))
    groups = group(signatures, founders)
    shuffled = group([signatures[place] for place in order], data.draw(st.permutations(founders)))
    assert partition(shuffled, order) == partition(groups)
    assert list(map(repr, (entry.founder for entry in shuffled))) == [
        repr(entry.founder) for entry in groups
    ]


@QUICK
@given(many, many)
def test_who_has_joined_a_founder_stays_with_it_whoever_comes(first, later):
    """As a node lives it: the founders of one call are known to the next."""
    before = group(first)
    after = {
        entry.founder: entry.members
        for entry in group([*first, *later], [entry.founder for entry in before])
    }
    owned = {entry.founder for entry in before}
    for member, one in enumerate(first):
        near = [founder for founder in owned if differences(one, founder) == ()]
        assert any(member in after.get(founder, ()) for founder in near)


@QUICK
@given(many)
def test_series_that_come_one_at_a_time_are_never_moved(signatures):
    founders, joined = [], {}
    for number, one in enumerate(signatures):
        (entry,) = group([one], founders)
        joined[number] = entry.founder
        if entry.founder not in founders:
            founders.append(entry.founder)
    for number, one in enumerate(signatures):
        assert differences(one, joined[number]) == ()


@QUICK
@given(a_signature(), st.lists(a_signature(), max_size=5))
def test_names_are_valid_and_different_and_their_rules_are_read(one, others):
    taken = set()
    for made in [one, *others]:
        name = unused_name(proposed_name(made), taken)
        assert name not in taken
        taken.add(name)
        text = toml(made, name)
        (found,) = NodeConfig.model_validate(tomllib.loads(text)).protocol
        assert found.name == name


words = st.text(st.characters(codec="ascii", exclude_characters="\\"), max_size=16)


@QUICK
@given(st.dictionaries(
    st.sampled_from(["BodyPartExamined", "ConvolutionKernel", "ScanningSequence", "ImageType",
                     "EchoTime", "KVP", "SequenceVariant", "StudyDescription", "InversionTime",
                     "ImageOrientationPatient", "MagneticFieldStrength", "ContrastBolusAgent"]),
    words,
), st.sampled_from(["CT", "MR"]))  # fmt: skip
def test_whatever_text_stands_in_a_header_it_has_a_signature_and_a_valid_rule(values, modality):
    ds = Dataset()
    ds.Modality = modality
    for keyword, value in values.items():
        ds.add_new(keyword, "UT", value)  # as a damaged header: the wrong representation
    made = signature(ds, (1.0, 1.0, 1.0))
    text = toml(made, proposed_name(made))
    assert NodeConfig.model_validate(tomllib.loads(text)).protocol[0].match.modality == modality


@QUICK
@given(
    st.sampled_from(["MR", "CT"]),
    st.sampled_from([None, "HEAD", "BRAIN", "LUNG", "X Y"]),
    st.sampled_from([None, "SE", ["SE", "IR"], ["GR"]]),
    st.sampled_from([None, "", "Gadovist"]),
    st.floats(0.05, 30),
)
def test_the_rule_claims_the_series_that_it_was_made_from(modality, part, kind, agent, spacing_mm):
    ds = make_instance(modality)
    for keyword, value in {
        "BodyPartExamined": part,
        "ScanningSequence": kind,
        "ContrastBolusAgent": agent,
    }.items():
        setattr(ds, keyword, value)
    made = signature(ds, (spacing_mm, 1.0, 1.0))
    (rule,) = NodeConfig.model_validate(tomllib.loads(toml(made, "made"))).protocol
    assert mismatches(rule.match, ds, spacing_mm) == []


@QUICK
@given(st.sampled_from(["", "SEG", "US", "ct "]))
def test_other_modalities_are_refused(modality):
    ds = Dataset()
    ds.add_new("Modality", "UT", modality)
    if modality.strip().upper() == "CT":
        assert signature(ds, (1.0, 1.0, 1.0)).modality == "CT"
    else:
        with pytest.raises(NotScorable):
            signature(ds, (1.0, 1.0, 1.0))
