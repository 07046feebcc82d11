"""Views of kept tokens: the same as tokens that were made so."""

import pytest
import torch

from dicom_node.anomaly.spec import ScoringSpec, SearchSpec, TokenSpec
from dicom_node.anomaly.tokens import axis_features, projection_matrix, tokenize
from dicom_node.evaluate.views import View, open_view
from dicom_node.reference_files import ReferenceFiles
from dicom_node.scoring import score_against
from dicom_node.subject import Subject
from tests.make.encoders import COARSE, FINE, tiny_encoder
from tests.make.subjects import keep

SPEC = TokenSpec((COARSE, FINE), projection_dim=6)


@pytest.fixture(scope="module")
def volume():
    generator = torch.Generator().manual_seed(3)
    return torch.rand(32, 32, 32, generator=generator), torch.ones(32, 32, 32, dtype=torch.bool)


@pytest.fixture(scope="module")
def files(tmp_path_factory, volume):
    files = ReferenceFiles(tmp_path_factory.mktemp("kept"), "f", SearchSpec())
    made = tokenize(*volume, tiny_encoder(), SPEC)
    files.save_subject("a", Subject(made, volume[1], torch.eye(4, dtype=torch.float64)))
    return files


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2)])
def test_axes_of_a_view_are_those_of_tokens_that_were_made_of_them_alone(
    files, volume, tmp_path, axes
):
    alone = tokenize(*volume, tiny_encoder(), TokenSpec((COARSE, FINE), axes, projection_dim=6))
    view = open_view(files, tmp_path, View(axes=axes), SearchSpec(), 3)
    for seen, made in zip(view.load_tokens("a"), alone, strict=True):
        torch.testing.assert_close(seen.values, made.values.bfloat16().float(), atol=0, rtol=0)
        assert torch.equal(seen.index, made.index)


def test_a_shorter_projection_is_that_of_the_first_columns_of_each_axis(files, volume, tmp_path):
    view = open_view(files, tmp_path, View(k=2), SearchSpec(), 3)
    kept = torch.ones(4, 4, 4, dtype=torch.bool)
    seen = view.load_tokens("a")[1].values
    for axis in range(3):
        features = axis_features(volume[0], kept, axis, tiny_encoder(), FINE).flatten(1, 3)
        matrix = projection_matrix(features.shape[-1], 6, 0)[:, :2]
        expected = (features @ matrix).bfloat16().float()
        torch.testing.assert_close(seen[..., 2 * axis : 2 * axis + 2], expected, atol=0.02, rtol=0)


def test_distances_of_a_view_lie_apart_and_the_whole_ones_stay(tmp_path):
    files, names = keep(tmp_path / "whole", range(4))
    whole = [d.clone() for d in files.distances("s0", names[1:])]
    view = open_view(files, tmp_path / "views", View(axes=(1,)), SearchSpec(), 2)
    seen = view.distances("s0", names[1:])
    assert all(bool((a <= b + 1e-3).all()) for a, b in zip(seen, whole, strict=True))
    assert not torch.allclose(seen[0], whole[0])
    assert view.pair_file("s0", "s1").is_relative_to(tmp_path / "views")
    after = files.distances("s0", names[1:])
    assert all(torch.equal(a, b) for a, b in zip(after, whole, strict=True))


@pytest.mark.parametrize("scale", [0, 1])
def test_one_scale_alone_is_scored_by_its_own_distances_of_the_whole_search(tmp_path, scale):
    search = SearchSpec(n_cells=1)
    files, names = keep(tmp_path / "whole", range(5), search)
    one = open_view(files, tmp_path, View(scales=(scale,)), search, 1)
    spec = ScoringSpec(calibration="none")
    scores = score_against(one, "s0", names[1:], spec).raw
    expected = files.averages("s0", names[1:], spec.nearest_share)[scale].mean(0)
    index, shape = files.token_places("s0")[scale]
    assert scores.shape == torch.Size(shape)
    torch.testing.assert_close(scores.flatten()[index], expected)
    assert int(scores.isfinite().sum()) == len(index)


def test_another_search_has_other_distances_on_the_same_tokens(tmp_path):
    files, names = keep(tmp_path / "whole", range(3), SearchSpec(n_cells=1))
    every = open_view(files, tmp_path, View(), SearchSpec(), 1)
    near, all_of = (f.distances("s0", names[1:])[1] for f in (files, every))
    assert bool((all_of <= near + 1e-3).all())
    assert bool((all_of < near - 1e-2).any())
