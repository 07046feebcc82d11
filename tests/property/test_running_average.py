"""The running interval average against the average of the whole set."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly.running_average import RunningAverage
from dicom_node.anomaly.similarity import interval_average

TOKENS = (2, 5)


def assert_follows(state, kept, share):
    """The state tells the average of what is kept, or says that it cannot."""
    found = state.average(share)
    assert state.n_others == len(kept)
    if found is not None:
        torch.testing.assert_close(found, interval_average(torch.stack(kept), share))
    return found is not None


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 9999),
    st.integers(1, 12),
    st.lists(st.booleans(), max_size=40),
    st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    st.integers(1, 8),
    st.booleans(),
)
def test_it_follows_every_sequence_of_comings_and_goings(seed, n, steps, share, width, ties):
    generator = torch.Generator().manual_seed(seed)

    def distance():
        drawn = torch.rand(TOKENS, generator=generator)
        return (drawn * 4).floor() / 4 if ties else drawn

    kept = [distance() for _ in range(n)]
    state = RunningAverage.of(torch.stack(kept), share, width)
    assert assert_follows(state, kept, share)
    for comes in steps:
        if comes or len(kept) == 1:
            kept.append(distance())
            state = state.insert(kept[-1], share)
        else:
            gone = int(torch.randint(len(kept), (1,), generator=generator))
            state = state.remove(kept.pop(gone))
        if not assert_follows(state, kept, share):
            state = RunningAverage.of(torch.stack(kept), share, width)


def test_a_wide_window_follows_a_batch_from_40_to_80_subjects_without_the_whole_set():
    generator = torch.Generator().manual_seed(1)
    kept = list(torch.rand(40, 200, generator=generator))
    state = RunningAverage.of(torch.stack(kept), 0.3, 24)
    for _ in range(40):
        kept.append(torch.rand(200, generator=generator))
        state = state.insert(kept[-1], 0.3)
        assert assert_follows(state, kept, 0.3)


def test_a_window_that_k_has_left_says_so():
    kept = list(torch.rand(40, 3, generator=torch.Generator().manual_seed(2)) + 1)
    state = RunningAverage.of(torch.stack(kept), 0.3, 4)
    for _ in range(30):  # all below what is known: K stays far behind
        state = state.insert(torch.zeros(3), 0.3)
    assert state.average(0.3) is None
