"""The line of one worker: what names a token space, and an encoder that cannot be loaded."""

import os
import tomllib
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from dicom_node import nifti
from dicom_node.anomaly.encoder import Encoder as FrozenEncoder
from dicom_node.anomaly.spec import (
    ALIGNED_SEARCH,
    ANALOGUE_SEARCH,
    FREE_SEARCH,
    GridSpec,
    IntensitySpec,
    ScaleSpec,
    ScoringSpec,
)
from dicom_node.anomaly.tokens import default_scales
from dicom_node.config import Encoder, Scale
from dicom_node.errors import ConfigError
from tests.make import ledgers, lines
from tests.make.bodies import AFFINE, body
from tests.make.encoders import TINY

TEMPLATE = Path("template.nii.gz")
EXAMPLE = Path(__file__).parents[2] / "config.example.toml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def make(tmp_path, weights):
    """A line with changes in its sections."""
    with ledgers.ledger(tmp_path) as database:
        yield lambda **sections: lines.make_line(database, tmp_path, weights, **sections)


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory):
    """Two bodies as template files: the tests name the first as it stands, and run beside it."""
    folder = tmp_path_factory.mktemp("templates")
    for name, seed in (("template", 1), ("other", 2)):
        nifti.write(folder / f"{name}.nii.gz", body(seed=seed), AFFINE, "body")
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


def names(line):
    (t1,) = line.config.protocol
    return line.token_fingerprint(t1), line.fingerprint(t1)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("encoder", {"scales": [{"upsampling": 2}]}),
        ("encoder", {"scales": [{"slices_per_token": 4, "layers": [1]}, {"upsampling": 2}]}),
        ("encoder", {"scales": [{"slices_per_token": 3}, {"upsampling": 2}]}),
        ("encoder", {"axes": ("axial", "sagittal")}),
        ("encoder", {"projection_dim": 16}),
        ("encoder", {"seed": 1}),
        ("protocol", {"extent_mm": (32.0, 32.0, 48.0)}),
        ("protocol", {"spacing_mm": 2.0}),
        ("protocol", {"intensity": "hounsfield"}),
        ("protocol", {"window_hu": (0.0, 100.0)}),
        ("protocol", {"foreground": "brain"}),
        ("protocol", {"alignment": "rigid", "template": TEMPLATE}),
        ("protocol", {"alignment": "rigid", "template": TEMPLATE, "foreground": "template"}),
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
        ("protocol", {"coarse_cells": 0}),
        ("protocol", {"window_cells": 2}),
        ("protocol", {"outlier_limit": 4.0}),
        ("protocol", {"guard_shared": True}),
        ("protocol", {"finding_threshold": 4.0}),
        ("protocol", {"findings_per_normal": 1.0}),
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
        ("encoder", {"compile": True}),
    ],
)
def test_what_shapes_neither_leaves_both_names(make, section, values):
    assert names(make(**{section: values})) == names(make())


def test_another_template_and_another_kind_of_alignment_make_another_token_space(make):
    one = {"alignment": "rigid", "template": TEMPLATE}
    made = [
        names(make(protocol=how))[0]
        for how in (one, one | {"template": Path("other.nii.gz")}, one | {"alignment": "affine"})
    ]
    assert len(set(made)) == 3


def test_a_template_that_cannot_be_read_is_an_error_of_the_configuration(make):
    for path in (Path("nowhere.nii.gz"), Path(__file__)):
        with pytest.raises(ConfigError, match=rf"t1: template: .*{path.name}"):
            make(protocol={"alignment": "rigid", "template": path})


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


def test_a_machine_without_a_compiler_is_told_so_when_the_worker_starts(make, monkeypatch):
    def nothing(_encoder):
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

    monkeypatch.setattr(FrozenEncoder, "compile", nothing)
    with pytest.raises(ConfigError, match=r"encoder\.compile.*InvalidCxxCompiler"):
        _ = make(encoder={"compile": True}).encoder
    assert make().encoder.depth == 12


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("protocol", {"extent_mm": (30.0, 32.0, 32.0)}),
        # fine tokens would fit
        ("protocol", {"extent_mm": (32.0, 40.0, 32.0)}),
        ("protocol", {"spacing_mm": 1.5}),
    ],
)
def test_a_grid_that_tokens_do_not_fit_into_is_refused_at_the_start(make, section, values):
    with pytest.raises(ConfigError, match=r"\[\[protocol\]\] .*extent_mm could be \["):
        make(**{section: values})


@pytest.mark.parametrize("upsamplings", [(2, 1), (1, 1), (2, 2, 1)])
def test_scales_that_do_not_nest_are_refused_at_the_start(make, upsamplings):
    scales = [{"upsampling": upsampling} for upsampling in upsamplings]
    with pytest.raises(ConfigError, match=r"encoder\.scales: token edges .* do not nest"):
        make(encoder={"scales": scales})


# -- the method of a protocol --------------------------------------------------------------------


def method(line):
    (t1,) = line.config.protocol
    return line.method(t1)


def test_scales_and_layers_that_are_not_given_are_those_of_the_weights(make):
    assert method(make()).tokens.scales == default_scales((0,))
    given = [{"layers": [3]}, {"upsampling": 2, "slices_per_token": 2}]
    expected = (ScaleSpec(1, 1, (3,)), ScaleSpec(2, 2, (0,)))
    assert method(make(encoder={"scales": given})).tokens.scales == expected


def test_the_scales_that_the_example_shows_are_the_default_of_the_packaged_weights():
    """They stand there as a comment, so that other weights have scales of their own."""
    text = EXAMPLE.read_text("utf-8").splitlines()
    start = next(n for n, line in enumerate(text) if line.startswith("# scales = ["))
    end = next(n for n, line in enumerate(text) if n > start and line.startswith("# ]"))
    shown = tomllib.loads("\n".join(line.removeprefix("# ") for line in text[start : end + 1]))
    scales = Encoder.model_validate(shown).scales
    made = tuple(ScaleSpec(s.upsampling, s.slices_per_token, s.layers) for s in scales)
    assert made == default_scales((8,))
    assert all(set(scale) == set(Scale.model_fields) for scale in shown["scales"])


def test_places_are_compared_only_where_the_subjects_lie_in_one_space(make):
    assert method(make()).search == ALIGNED_SEARCH
    assert method(make(protocol={"calibration": "none"})).search == FREE_SEARCH
    chosen = method(make(protocol={"coarse_cells": 3, "window_cells": 0})).search
    assert (chosen.n_cells, chosen.window_cells) == (3, 0)
    free = method(make(protocol={"calibration": "none", "coarse_cells": 3})).search
    assert (free.n_cells, free.window_cells) == (3, -1)
    assert method(make(protocol={"calibration": "analogue"})).search == ANALOGUE_SEARCH


def test_a_protocol_may_have_tokens_of_its_own(make):
    own = (Scale(upsampling=2, layers=(1,)),)
    line = make(protocol={"scales": own})
    assert method(line).tokens.scales == (ScaleSpec(2, 1, (1,)),)
    assert names(line)[0] == names(make(encoder={"scales": own}))[0] != names(make())[0]
    with pytest.raises(ConfigError, match=r"\[\[protocol\]\] t1: scales: .*nest"):
        make(protocol={"scales": (Scale(upsampling=2), Scale(upsampling=1))})


def test_a_protocols_method_is_what_its_section_says(make):
    changes = {
        "extent_mm": (32.0, 64.0, 32.0),
        "spacing_mm": 2.0,
        "intensity": "hounsfield",
        "window_hu": (40.0, 80.0),
        "calibration": "none",
    }
    made = method(make(protocol=changes, scoring={"nearest_share": 0.5, "smoothing_mm": 1.5}))
    assert made.grid == GridSpec((32.0, 64.0, 32.0), 2.0)
    assert made.intensity == IntensitySpec("hounsfield", (40.0, 80.0))
    assert made.scoring == ScoringSpec(nearest_share=0.5, calibration="none", smoothing_mm=1.5)
    assert made.tokens.axes == (0,)
    assert made.tokens.projection_dim == 8
