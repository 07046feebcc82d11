"""The named methods: what they stand for, and that the predecessor's is as printed."""

import pytest

from dicom_node.anomaly.presets import PRESETS, preset
from dicom_node.anomaly.similarity import n_nearest
from dicom_node.anomaly.spec import ANALOGUE_SEARCH
from dicom_node.anomaly.tokens import check_grid

PATCH, LAYERS, DEPTH = 14, (8,), 12


def made(name):
    return preset(name, LAYERS, DEPTH)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_grid_of_whole_tokens(name):
    method = made(name)
    for pitch in method.tokens.pitches(PATCH):
        check_grid(method.grid.shape, pitch)


def test_the_published_method_is_as_it_is_printed():
    method = made("published")
    assert method.grid.shape == (224, 224, 224)
    assert method.grid.extent_mm == (156.0, 156.0, 156.0)
    (scale,) = method.tokens.scales
    assert scale.layers == (2, 5, 8, 11)
    assert scale.slices_per_token == 14
    assert method.tokens.pitches(PATCH) == (14,)
    assert [side // 14 for side in method.grid.shape] == [16, 16, 16]
    assert method.tokens.whole_slices
    assert method.tokens.axes == (0, 1, 2)
    assert method.tokens.projection_dim == 128
    # K of 13 subjects: a tenth of the 12 others, rounded up
    assert n_nearest(12, method.scoring.nearest_share) == 2
    assert (method.scoring.calibration, method.scoring.smoothing_mm) == ("none", 0.0)
    assert method.search.n_cells == 0


def test_the_published_layers_are_the_quarters_of_any_depth():
    assert preset("published", (16,), 24).tokens.scales[0].layers == (5, 11, 17, 23)


def test_ours_compare_places_only_where_the_subjects_lie_in_one_space():
    mr, ct = made("mr"), made("ct")
    assert mr.scoring.calibration == "position"
    assert mr.search.window_cells >= 0
    assert mr.search.n_cells > 0
    assert (ct.scoring.calibration, ct.search) == ("analogue", ANALOGUE_SEARCH)
    assert (mr.intensity.kind, ct.intensity.kind) == ("percentiles", "hounsfield")
    assert ct.tokens.scales == mr.tokens.scales[1:]
    assert mr.tokens.scales[-1].layers == LAYERS


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="no preset 'pet'; known: mr, ct, published"):
        made("pet")
