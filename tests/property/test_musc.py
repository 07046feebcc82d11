"""The raw scores of a batch against MuSc's formulas, on random subjects of one scale."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly.spec import ScoringSpec, SearchSpec
from dicom_node.reference_files import ReferenceFiles
from dicom_node.scoring import score_against
from tests.make.subjects import subject
from tests.oracle import musc


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 999), st.integers(4, 7), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_raw_scores_are_those_of_the_published_formulas(tmp_path_factory, seed, n, share):
    files = ReferenceFiles(tmp_path_factory.mktemp("files"), "f", SearchSpec())
    names = [f"s{number}" for number in range(n)]
    for number, name in enumerate(names):
        made = subject(seed + number)
        files.save_subject(name, replace(made, tokens=made.tokens[-1:]))
    kept = [files.load_tokens(name)[0] for name in names]
    own = seed % n
    others = [name for place, name in enumerate(names) if place != own]
    raw = score_against(files, names[own], others, ScoringSpec(nearest_share=share)).raw
    layers = [
        musc.token_scores([tokens.values[layer] for tokens in kept], own, share)
        for layer in range(kept[own].values.shape[0])
    ]
    expected = torch.full(kept[own].grid_shape, torch.nan)
    expected.view(-1)[kept[own].index] = torch.stack(layers).mean(0)
    torch.testing.assert_close(raw, expected, atol=2e-3, rtol=1e-4, equal_nan=True)
