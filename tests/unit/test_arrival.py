"""Whether a slice is missing, by what slices say of themselves."""

import pytest

from dicom_node.arrival import Slice, has_gap, is_one_stack, slice_of

AXIAL = "1\\0\\0\\0\\1\\0"
SAGITTAL = "0\\1\\0\\0\\0\\-1"
OBLIQUE = "0.96\\0.28\\0\\-0.2688\\0.9216\\-0.28"


def stack(*places, orientation=AXIAL):
    """Slices at places along z."""
    return [slice_of(f"-10\\20.5\\{place}", orientation) for place in places]


def test_the_place_of_a_slice_is_along_its_normal():
    assert slice_of("3\\4\\5", AXIAL) == Slice(5.0, "0.00\\0.00\\1.00")
    assert slice_of("3\\4\\5", SAGITTAL).along_mm == pytest.approx(-3.0)
    assert slice_of("0\\0\\0", OBLIQUE).plane == slice_of("9\\9\\9", OBLIQUE).plane


@pytest.mark.parametrize(
    ("position", "orientation"),
    [
        ("", AXIAL),
        ("1\\2", AXIAL),
        ("1\\2\\x", AXIAL),
        ("1\\2\\nan", AXIAL),
        ("1\\2\\3", ""),
        ("1\\2\\3", "1\\0\\0\\1\\0\\0"),
        ("1\\2\\3", "0\\0\\0\\0\\0\\0"),
    ],
)
def test_what_cannot_be_read_says_nothing(position, orientation):
    assert slice_of(position, orientation) is None


@pytest.mark.parametrize(
    ("places", "gap"),
    [
        ((0, 1, 2, 3, 4), False),
        ((4, 0, 2, 3), True),  # in any order, one missing
        ((0, 3, 6, 9, 15), True),
        ((0, 3.1, 6, 9.05, 12), False),
        ((0, 0, 1, 1, 2, 2, 3, 3), False),  # two echoes
        ((0, 0, 1, 1, 2, 2, 4, 4), True),
        ((0, 5, 50), False),  # too few to know
        ((), False),
    ],
)
def test_a_gap_is_a_step_that_is_longer_than_the_usual(places, gap):
    assert has_gap(stack(*places)) is gap


def test_slices_in_several_planes_have_no_gap():
    assert not has_gap([*stack(0, 1, 2, 9), *stack(0, 1, 2, orientation=SAGITTAL)])


@pytest.mark.parametrize(
    ("slices", "one"),
    [
        (stack(0, 1, 2, 3, 4), True),
        (stack(3), True),
        (stack(9, 0, 4, 1, 2), True),
        (stack(0, 1, 1, 2), False),
        (stack(0, 1, 1.05, 2, 3), False),
        ([*stack(0, 1, 2, 3), None], False),
        ([*stack(0, 1, 2, 3), *stack(7, orientation=SAGITTAL)], False),
        ([], False),
    ],
)
def test_slices_of_one_plane_at_places_of_their_own_are_one_stack(slices, one):
    assert is_one_stack(slices) is one
