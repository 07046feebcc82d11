"""What is kept of a subject: tokens, distances between pairs, and averages over a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly.matching import match
from dicom_node.anomaly.similarity import interval_average, mutual_nearest
from dicom_node.anomaly.spec import SearchSpec
from dicom_node.errors import NonFiniteScores
from dicom_node.reference_files import ReferenceFiles, _pack_bits, _unpack_bits
from tests.make.subjects import GRIDS, keep, subject


@pytest.fixture
def files(tmp_path):
    return ReferenceFiles(tmp_path, "f", SearchSpec())


def assert_same_tokens(found, expected):
    """The values are the expected ones rounded to bf16; the rest is kept as it is."""
    for one, other in zip(found, expected, strict=True):
        assert one.values.dtype is torch.float32
        rounded = other.values.to(torch.bfloat16).float()
        torch.testing.assert_close(one.values, rounded, atol=0, rtol=0)
        assert torch.equal(one.index, other.index)
        assert one.grid_shape == other.grid_shape


# -- tokens --------------------------------------------------------------------------------------


def test_a_kept_subject_comes_back_with_its_tokens_rounded(files):
    made = subject(1)
    assert not files.has_subject("a")
    files.save_subject("a", made)
    assert files.has_subject("a")
    back = files.load_subject("a")
    assert_same_tokens(back.tokens, made.tokens)
    assert_same_tokens(files.load_tokens("a"), made.tokens)
    assert torch.equal(back.foreground, made.foreground)
    assert torch.equal(back.affine, made.affine)
    places = files.token_places("a")
    assert [shape for _, shape in places] == list(GRIDS)
    for (index, _), tokens in zip(places, made.tokens, strict=True):
        assert torch.equal(index, tokens.index)
    with pytest.raises(FileNotFoundError):
        files.load_subject("b")


def test_a_subject_of_one_scale_comes_back_as_one(files):
    made = subject(1)
    one = type(made)(made.tokens[1:], made.foreground, made.affine)
    files.save_subject("a", one)
    assert_same_tokens(files.load_subject("a").tokens, made.tokens[1:])


def test_token_spaces_do_not_share_files(tmp_path, files):
    files.save_subject("a", subject(1))
    assert not ReferenceFiles(tmp_path, "g", SearchSpec()).has_subject("a")


@given(st.lists(st.booleans(), max_size=40))
def test_packed_bits_come_back(flags):
    packed = _pack_bits(torch.tensor(flags, dtype=torch.uint8))
    assert packed.numel() == (len(flags) + 7) // 8
    assert _unpack_bits(packed)[: len(flags)].bool().tolist() == flags


# -- distances -----------------------------------------------------------------------------------


def test_kept_distances_are_those_measured_afresh_in_both_directions(tmp_path, monkeypatch):
    files, names = keep(tmp_path, range(3))
    first = files.distances("s0", names[1:])
    tokens = {name: files.load_tokens(name) for name in names}
    for scale, found in enumerate(first):
        assert found.shape == (2, *tokens["s0"][scale].values.shape[:2])
        for layer, queries in enumerate(tokens["s0"][scale].values):
            for other, name in enumerate(names[1:]):
                keys = tokens[name][scale].values[layer]
                expected = mutual_nearest(queries, keys, 2048)[0]
                torch.testing.assert_close(found[other, layer], expected, atol=1e-5, rtol=1e-5)
    measured = []
    monkeypatch.setattr(files, "load_tokens", measured.append)
    again = files.distances("s0", ["s2", "s1"])
    back = files.distances("s1", ["s0"])
    assert measured == []
    for scale in range(2):
        assert torch.equal(again[scale], first[scale].flip(0))
        for layer, queries in enumerate(tokens["s1"][scale].values):
            expected = mutual_nearest(queries, tokens["s0"][scale].values[layer], 2048)[0]
            torch.testing.assert_close(back[scale][0, layer], expected, atol=1e-5, rtol=1e-5)


def test_distances_of_another_search_are_not_taken_for_these(tmp_path):
    """The tokens are the same, and kept once; their distances are not."""
    exhaustive, _ = keep(tmp_path, range(2))
    free = SearchSpec(n_cells=1)
    restricted = ReferenceFiles(tmp_path, "f", free)
    everywhere = exhaustive.distances("s0", ["s1"])
    near = restricted.distances("s0", ["s1"])
    expected, _ = match(restricted.load_tokens("s0"), restricted.load_tokens("s1"), free)
    for scale in range(2):
        torch.testing.assert_close(near[scale][0], expected[scale])
    assert torch.equal(near[0], everywhere[0])
    assert not torch.equal(near[1], everywhere[1])
    assert torch.equal(exhaustive.distances("s0", ["s1"])[1], everywhere[1])


def test_the_chunk_is_no_other_search(tmp_path):
    one, _ = keep(tmp_path, range(2), SearchSpec(chunk=2))
    found = one.distances("s0", ["s1"])
    other = ReferenceFiles(tmp_path, "f", SearchSpec(chunk=64))
    kept = sorted(tmp_path.glob("distances/**/*.safetensors"))
    assert all(map(torch.equal, other.distances("s0", ["s1"]), found))
    assert sorted(tmp_path.glob("distances/**/*.safetensors")) == kept


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("scale", [0, 1])
@pytest.mark.parametrize("search", [SearchSpec(), SearchSpec(n_cells=1)], ids=["all", "near"])
def test_distances_that_are_no_numbers_are_raised_and_not_kept(tmp_path, search, scale, bad):
    files, names = keep(tmp_path, range(2), search)
    made = subject(2)
    made.tokens[scale].values[0, 0, 0] = bad
    files.save_subject("bad", made)
    for name in names:
        for asked in ((name, ["bad"]), ("bad", [name])):
            with pytest.raises(NonFiniteScores, match=r"of .*bad"):
                files.distances(*asked)
    assert list(tmp_path.glob("distances/**/*.safetensors")) == []


def test_a_distance_that_is_endless_in_one_direction_alone_is_not_kept_either(tmp_path):
    """An infinite token is nobody's nearest one: who asks for the others' distances sees none."""
    files, _ = keep(tmp_path, [])
    own, bad = subject(1), subject(2)
    own.tokens[1].values[..., 0] = -1.0
    bad.tokens[1].values[0, 0] = torch.tensor([torch.inf, 0.0, 0.0, 0.0])
    files.save_subject("own", own)
    files.save_subject("bad", bad)
    with pytest.raises(NonFiniteScores, match="distances of own to bad"):
        files.distances("own", ["bad"])
    assert list(tmp_path.glob("distances/**/*.safetensors")) == []


# -- averages ------------------------------------------------------------------------------------


def assert_averages(files, name, others, share):
    expected = [interval_average(d, share) for d in files.distances(name, others)]
    found = files.averages(name, others, share)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_averages_follow_a_batch_as_it_grows_rolls_and_is_exchanged(tmp_path):
    """Below 32 others they are read as they are, above followed; both are the same numbers."""
    files, names = keep(tmp_path, range(60))
    own, *others = names
    batches = [others[:3], others[:32], *(others[:n] for n in range(33, 41))]
    batches += [others[n : 40 + n] for n in range(8)]  # the oldest leaves
    batches += [others[7:47][::-1], [*others[7:30], *others[31:47]]]
    batches += [others[20:59], others[:35]]  # too many go and come at once
    for share in (0.3, 1.0):
        for batch in batches:
            assert_averages(files, own, batch, share)


def test_a_step_of_a_large_batch_reads_the_distances_of_those_who_come_and_go(
    tmp_path, monkeypatch
):
    files, (own, *others) = keep(tmp_path, range(42))
    files.averages(own, others[:40], 0.3)
    asked = []
    original = files.distances
    monkeypatch.setattr(
        files, "distances", lambda name, some: asked.extend(some) or original(name, some)
    )
    files.averages(own, others[:40], 0.3)
    assert asked == []
    files.averages(own, others[1:41], 0.3)
    assert sorted(asked) == sorted([others[0], others[40]])
    asked.clear()
    files.averages(own, others[1:41], 0.3)
    assert asked == []


@settings(max_examples=8, deadline=None)
@given(st.lists(st.permutations(range(1, 45)), min_size=1, max_size=4), st.integers(33, 44))
def test_whatever_batches_come_one_after_the_other_the_averages_are_theirs(shared, orders, n):
    for order in orders:
        assert_averages(shared, "s0", [f"s{seed}" for seed in order[:n]], 0.2)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Files of 45 subjects whose averages know of the batches that earlier examples asked for."""
    return keep(tmp_path_factory.mktemp("files"), range(45))[0]
