"""Harmonisation by landmarks on any subject: order, fixed points, units, ties."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dicom_node.anomaly.harmonisation import SHARES, harmonize, landmarks, mean_landmarks
from dicom_node.anomaly.intensity import normalize_percentiles
from dicom_node.anomaly.spec import IntensitySpec

LEVELS = st.lists(st.floats(0, 0.69), min_size=len(SHARES) - 2, max_size=len(SHARES) - 2)


@st.composite
def standards(draw):
    """Landmarks with the ends that every normalised subject has."""
    return (0.0, *sorted(draw(LEVELS)), float(torch.tensor(0.7)))


@st.composite
def subjects(draw):
    """(depth, height, width) raw values and a foreground; whole numbers: ties are common."""
    n = draw(st.integers(40, 400))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n_levels = draw(st.integers(2, 300))
    raw = torch.randint(0, n_levels, (n,), generator=generator).float() * 3
    foreground = torch.rand(n, generator=generator) > 0.2
    inside = raw[foreground].sort().values
    last = len(inside) - 1
    assume(last > 20 and inside[round(0.01 * last)] < inside[round(0.99 * last)])
    return raw.view(1, 1, n), foreground.view(1, 1, n)


def normalised(subject):
    return normalize_percentiles(*subject)


@settings(max_examples=40)
@given(subjects(), standards())
def test_what_was_brighter_is_never_darker_afterwards(subject, standard):
    before, inside = normalised(subject), subject[1]
    order = before[inside].argsort(stable=True)
    after = harmonize(before, inside, standard)[inside][order]
    assert (after.diff() >= -1e-6).all()
    assert after.min() >= 0
    assert after.max() <= 1


@settings(max_examples=40)
@given(subjects())
def test_a_subject_that_has_the_landmarks_stays_as_it_is(subject):
    before, inside = normalised(subject), subject[1]
    after = harmonize(before, inside, landmarks(before, inside))
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


@settings(max_examples=40)
@given(subjects(), standards(), st.floats(0.1, 1000), st.floats(-100, 100))
def test_the_unit_and_the_zero_of_the_scanner_do_not_matter(subject, standard, gain, offset):
    raw, inside = subject
    one, other = (
        harmonize(normalize_percentiles(values, inside), inside, standard)
        for values in (raw.double(), raw.double() * gain + offset)
    )
    # where own landmarks lie close together, what is rounded is drawn apart
    assert ((one - other).abs() < 0.02).double().mean() > 0.97


@settings(max_examples=40)
@given(subjects(), standards())
def test_distinct_landmarks_come_to_lie_at_the_standard(subject, standard):
    before, inside = normalised(subject), subject[1]
    own = landmarks(before, inside)
    assume(len(set(own)) == len(own))
    after = harmonize(before, inside, standard)
    torch.testing.assert_close(
        torch.tensor(landmarks(after, inside)), torch.tensor(standard), atol=1e-5, rtol=0
    )


@settings(max_examples=40)
@given(subjects(), standards())
def test_the_background_and_the_tail_are_left_alone(subject, standard):
    """A lesion brighter than all usual tissue keeps its distance to it."""
    before, inside = normalised(subject), subject[1]
    after = harmonize(before, inside, standard)
    assert torch.equal(after[~inside], before[~inside])
    tail = inside & (before > landmarks(before, inside)[-1])
    torch.testing.assert_close(after[tail], before[tail], atol=1e-6, rtol=0)


def test_a_curve_between_the_ends_is_undone():
    """Two scanners that show one body with another contrast: the histograms agree afterwards."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.rand(1, 40, 40, generator=generator)
    inside = torch.ones_like(raw, dtype=torch.bool)
    plain, bent = (normalize_percentiles(values, inside) for values in (raw, raw**2))
    assert (bent - plain).abs().mean() > 0.1
    brought = harmonize(bent, inside, landmarks(plain, inside))
    assert (brought - plain).abs().mean() < 0.01


def test_a_foreground_that_is_constant_in_large_part_is_mapped_too():
    values = torch.cat([torch.zeros(70), torch.linspace(0.01, 0.7, 30)]).view(1, 1, 100)
    inside = torch.ones_like(values, dtype=torch.bool)
    standard = tuple(0.07 * place for place in range(len(SHARES)))
    after = harmonize(values, inside, standard)
    assert (after[values == 0] == 0).all()
    assert (after.flatten()[70:].diff() > 0).all()


def test_mean_landmarks_are_the_mean_of_each():
    one, other = (tuple(place * factor for place in range(11)) for factor in (1.0, 3.0))
    assert mean_landmarks([one, other]) == tuple(2.0 * place for place in range(11))
    with pytest.raises(ValueError, match="one subject"):
        mean_landmarks([])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(bad):
    values = torch.rand(1, 8, 8)
    inside = torch.ones_like(values, dtype=torch.bool)
    good = landmarks(values, inside)
    with pytest.raises(ValueError, match="ascending"):
        harmonize(values, inside, (*good[:-1], bad if bad != float("inf") else -bad))
    values[0, 0, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        harmonize(values, inside, good)


@pytest.mark.parametrize("standard", [(), (0.0,) * 10, tuple(reversed(range(11)))])
def test_what_are_no_landmarks_are_refused(standard):
    values = torch.rand(1, 8, 8)
    with pytest.raises(ValueError, match="ascending"):
        harmonize(values, torch.ones_like(values, dtype=torch.bool), standard)
    with pytest.raises(ValueError, match="empty"):
        landmarks(values, torch.zeros_like(values, dtype=torch.bool))


def test_by_default_nothing_is_harmonised():
    assert IntensitySpec().landmarks == ()
