"""The line of one worker: what names a token space, and an encoder that cannot be loaded."""

import pytest
import timm
from safetensors.torch import save_file

from dicom_node.errors import ConfigError
from tests.make import ledgers, lines
from tests.make.encoders import TINY


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def make(tmp_path, weights):
    """A line with changes in its sections."""
    with ledgers.ledger(tmp_path) as database:
        yield lambda **sections: lines.make_line(database, tmp_path, weights, **sections)


def names(line):
    (t1,) = line.config.protocol
    return line.token_fingerprint(t1), line.fingerprint(t1)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("encoder", {"layers": (1,)}),
        ("encoder", {"axes": ("axial", "sagittal")}),
        ("encoder", {"upsampling": 1}),
        ("encoder", {"slices_per_token": 2}),
        ("encoder", {"projection_dim": 16}),
        ("encoder", {"seed": 1}),
        ("protocol", {"extent_mm": (32.0, 32.0, 40.0)}),
        ("protocol", {"spacing_mm": 2.0}),
        ("protocol", {"intensity": "hounsfield"}),
        ("protocol", {"window_hu": (0.0, 100.0)}),
    ],
)
def test_what_shapes_a_token_makes_another_token_space(make, section, values):
    plain, other = make(), make(**{section: values})
    assert names(other)[0] != names(plain)[0]
    assert names(other)[1] != names(plain)[1]


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("scoring", {"nearest_share": 0.5}),
        ("scoring", {"smoothing_mm": 1.0}),
        ("protocol", {"calibration": "none"}),
        ("protocol", {"finding_threshold": 4.0}),
        ("protocol", {"finding_min_volume_ml": 1.0}),
        ("protocol", {"max_findings": 3}),
    ],
)
def test_what_shapes_a_score_or_a_finding_leaves_the_batch_as_it_is(make, section, values):
    plain, other = make(), make(**{section: values})
    assert names(other)[0] == names(plain)[0]
    assert names(other)[1] != names(plain)[1]


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("scoring", {"threads": 1}),
        ("scoring", {"max_attempts": 9}),
        ("protocol", {"mode": "shadow"}),
        ("protocol", {"min_reference": 4}),
        ("node", {"ae_title": "OTHER"}),
    ],
)
def test_what_shapes_neither_leaves_both_names(make, section, values):
    assert names(make(**{section: values})) == names(make())


def test_other_weights_of_the_same_model_make_another_token_space(make, tmp_path):
    path = tmp_path / "other.safetensors"
    state = timm.create_model(TINY, pretrained=False, num_classes=0).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    assert names(make(encoder={"file": path}))[0] != names(make())[0]


def test_weights_that_do_not_fit_are_an_error_of_the_configuration(make, tmp_path):
    path = tmp_path / "deeper.safetensors"
    state = timm.create_model(TINY, pretrained=False, num_classes=0, depth=13).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    misfit = make(encoder={"file": path})
    with pytest.raises(ConfigError, match=r"deeper\.safetensors on .* cpu: .*blocks\.12"):
        _ = misfit.encoder


def test_a_device_that_is_not_there_is_an_error_of_the_configuration(make):
    line = make(encoder={"device": "cuda:99"})
    with pytest.raises(ConfigError, match=r"on encoder\.device cuda:99"):
        _ = line.encoder


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("protocol", {"extent_mm": (30.0, 32.0, 32.0)}),
        ("protocol", {"spacing_mm": 1.5}),
    ],
)
def test_a_grid_that_tokens_do_not_fit_into_is_refused_at_the_start(make, section, values):
    with pytest.raises(ConfigError, match=r"\[\[protocol\]\] .*extent_mm could be \["):
        make(**{section: values})
