"""What is kept of the subjects of one token space: tokens and distances between pairs, as files.

Tokens are memory-mapped and read one subject at a time, so that memory does not grow with the
batch. Distances are kept per ordered pair of subjects: a subject that joins a batch of n is
compared with each of them once, and no file of the others is written again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dicom_node import durable, quality
from dicom_node.anomaly.matching import LaidOut, lay_out, match_analogues, match_laid_out
from dicom_node.anomaly.running_average import RunningAverage
from dicom_node.anomaly.similarity import interval_average
from dicom_node.anomaly.spec import SearchSpec
from dicom_node.anomaly.tokens import Tokens
from dicom_node.config import digest
from dicom_node.errors import NonFiniteScores
from dicom_node.quality import Measures
from dicom_node.subject import Subject

#: per scale, coarse to fine
Scales = tuple[Tensor, ...]
#: the distances of a pair's tokens by their names; before the scale: which tokens are the nearest
_Pair = dict[str, Tensor]
_ANALOGUE = "analogue."
#: single distances kept of each token, about the K-th smallest
_WIDTH = 16
#: more others than this are followed by a state
_FOLLOWED_FROM = 2 * _WIDTH


class ReferenceFiles:
    """Tokens and pair distances of one fingerprint, as safetensors files.

    Several workers may use one folder: every file is replaced whole, and two that measure the same
    pair write the same.
    """

    def __init__(
        self, root: Path, fingerprint: str, search: SearchSpec, device: str = "cpu"
    ) -> None:
        """Use the files below `root`; pairs are compared on `device`, all else is on the CPU."""
        self._search, self._device = search, device
        self.root, self.fingerprint = root, fingerprint
        self._tokens = root / "tokens" / fingerprint
        #: of what decides which tokens are compared: distances of another search are other numbers
        kept = ["analogues"] if search.keep_analogues else []
        self.search_key = how = digest(search.n_cells, search.window_cells, *kept)
        self._distances = root / "distances" / fingerprint / how
        self._averages = root / "averages" / fingerprint / how

    def save_subject(self, name: str, subject: Subject) -> None:
        """Keep a subject; tokens are rounded to bf16, and scores are made from the kept ones."""
        packed = subject.foreground.to(torch.uint8).flatten()
        tensors = {
            "foreground": _pack_bits(packed),
            "shape": torch.tensor(subject.foreground.shape),
            "affine": subject.affine,
        }
        for scale, tokens in enumerate(subject.tokens):
            tensors[f"values.{scale}"] = tokens.values.to(torch.bfloat16)
            tensors[f"index.{scale}"] = tokens.index
            tensors[f"grid_shape.{scale}"] = torch.tensor(tokens.grid_shape)
        durable.make_folder(self._tokens)
        # in the same file: tokens that are used again bring their measures along
        text = {"measures": quality.as_text(subject.measures)}
        with durable.replacing(self.token_file(name)) as partial:
            save_file({key: one.contiguous() for key, one in tensors.items()}, partial, text)

    def has_subject(self, name: str) -> bool:
        """Return whether the subject's tokens are kept."""
        return self.token_file(name).exists()

    def load_subject(self, name: str) -> Subject:
        """Read a kept subject, its tokens as fp32; raises FileNotFoundError when it is not."""
        data = load_file(self.token_file(name))
        shape = data["shape"].tolist()
        bits = _unpack_bits(data["foreground"])[: shape[0] * shape[1] * shape[2]]
        mask, measured = bits.view(shape).bool(), self.load_measures(name)
        return Subject(self.load_tokens(name), mask, data["affine"], measured)

    def load_measures(self, name: str) -> Measures:
        """Read the quality measures of a kept subject; empty of an older version's, or imported."""
        with safe_open(self.token_file(name), framework="pt") as opened:
            return quality.from_text((opened.metadata() or {}).get("measures", ""))

    def load_tokens(self, name: str) -> tuple[Tokens, ...]:
        """Read the tokens of a kept subject as fp32, coarse to fine."""
        with safe_open(self.token_file(name), framework="pt") as opened:
            return tuple(
                Tokens(
                    opened.get_tensor(f"values.{scale}").float(),
                    opened.get_tensor(f"index.{scale}"),
                    _shape(opened.get_tensor(f"grid_shape.{scale}")),
                )
                for scale in range(_n_scales(opened.keys()))
            )

    def token_places(self, name: str) -> tuple[tuple[Tensor, tuple[int, int, int]], ...]:
        """Return, per scale, (n,) flat indices and (D, H, W) of a subject's tokens."""
        with safe_open(self.token_file(name), framework="pt") as opened:
            return tuple(
                (
                    opened.get_tensor(f"index.{scale}"),
                    _shape(opened.get_tensor(f"grid_shape.{scale}")),
                )
                for scale in range(_n_scales(opened.keys()))
            )

    def distances(self, name: str, others: Sequence[str]) -> Scales:
        """Return per scale (others, layers, n): distance of each own token to each other subject.

        What is not kept yet is measured and kept. `others` is not empty and does not hold `name`.
        Raises NonFiniteScores where a distance is no number: then neither direction is kept.
        """
        (distances,) = self._of_pairs(name, others, "")
        return distances

    def analogues(self, name: str, others: Sequence[str]) -> tuple[Scales, Scales]:
        """Return the distances, and the nearest tokens: per scale (others, layers, n) int32.

        Arguments and errors as of `distances`; ValueError where the search does not keep them.
        """
        if not self._search.keep_analogues:
            raise ValueError("the search does not keep which tokens are the nearest")
        distances, places = self._of_pairs(name, others, "", _ANALOGUE)
        return distances, places

    def _of_pairs(self, name: str, others: Sequence[str], *kinds: str) -> list[Scales]:
        """Read these kinds of tensors of the pairs; measure those that are not kept yet."""
        missing = [other for other in others if not self.pair_file(name, other).exists()]
        if missing:
            own = self._laid_out(name)
            for other in missing:
                forward, backward = self._measured(name, own, other)
                self._keep(name, other, forward)
                # a by-product that the leave-one-out maps want
                self._keep(other, name, backward)
        kept = [_read_pair(self.pair_file(name, other), kinds) for other in others]
        return [
            tuple(torch.stack(scale) for scale in zip(*of_kind, strict=True))
            for of_kind in zip(*kept, strict=True)
        ]

    def _measured(self, name: str, own: LaidOut, other: str) -> tuple[_Pair, _Pair]:
        """Compare `own`, the tokens of `name`, with `other`: what is kept, there and back."""
        there = self._laid_out(other)
        try:
            if self._search.keep_analogues:
                found = match_analogues(own, there, self._search)
                pairs = tuple(_pair(side.distances, side.places) for side in found)
            else:
                pairs = tuple(_pair(side) for side in match_laid_out(own, there, self._search))
        except ValueError as error:
            raise NonFiniteScores(f"distances of {name} to {other}: {error}") from error
        # both: an infinite token is nobody's nearest, and shows in its own distances alone
        if not all(bool(tensor.isfinite().all()) for pair in pairs for tensor in pair.values()):
            raise NonFiniteScores(f"distances of {name} to {other} are not finite")
        return pairs[0], pairs[1]

    def _laid_out(self, name: str) -> LaidOut:
        """Read the tokens of a subject to where they are compared; their places stay on the CPU.

        Raises NonFiniteScores where the restricted search, which looks at its tokens first, finds
        one that is no number.
        """
        loaded = self.load_tokens(name)
        moved = [replace(scale, values=scale.values.to(self._device)) for scale in loaded]
        try:
            return lay_out(moved, self._search)
        except ValueError as error:
            raise NonFiniteScores(f"tokens of {name}: {error}") from error

    def averages(self, name: str, others: Sequence[str], share: float) -> Scales:
        """Return per scale (layers, n): the mean distance to the nearest share of `others`.

        In a large batch it is followed from the last batch that the subject was compared with: one
        subject more or less costs one distance, however many the others are. Raises as
        `distances` does.
        """
        if len(others) <= _FOLLOWED_FROM:  # so few are read as quickly as the state would be
            return tuple(interval_average(d, share) for d in self.distances(name, others))
        path = self._averages / digest(share) / f"{name}.safetensors"
        known, states = _load_states(path) if path.exists() else ([], ())
        come, gone = sorted(set(others) - set(known)), sorted(set(known) - set(others))
        if len(come) + len(gone) <= len(others) // 2:
            states = self._followed(name, states, come, gone, share)
            found = [state.average(share) for state in states]
        else:
            found = [None]
        if any(average is None for average in found):
            states = tuple(
                RunningAverage.of(distances, share, _WIDTH)
                for distances in self.distances(name, others)
            )
            found = [state.average(share) for state in states]
        if come or gone or not known:
            _save_states(path, others, states)
        return tuple(average for average in found if average is not None)

    def _followed(
        self,
        name: str,
        states: tuple[RunningAverage, ...],
        come: Sequence[str],
        gone: Sequence[str],
        share: float,
    ) -> tuple[RunningAverage, ...]:
        """Bring the state of each scale up to date, one subject after the other."""
        for other in gone:
            distances = self.distances(name, [other])
            states = tuple(s.remove(d[0]) for s, d in zip(states, distances, strict=True))
        for other in come:
            distances = self.distances(name, [other])
            states = tuple(s.insert(d[0], share) for s, d in zip(states, distances, strict=True))
        return states

    def _keep(self, name: str, other: str, pair: _Pair) -> None:
        path = self.pair_file(name, other)
        durable.make_folder(path.parent)
        with durable.replacing(path) as partial:
            save_file(pair, partial)

    def token_file(self, name: str) -> Path:
        """Return where the subject's tokens lie, or will."""
        return self._tokens / f"{name}.safetensors"

    def pair_file(self, name: str, other: str) -> Path:
        """Return where the distances of one subject's tokens to another subject lie, or will."""
        return self._distances / name / f"{other}.safetensors"


def _pair(distances: Scales, places: Scales = ()) -> _Pair:
    """Name what is kept of a pair."""
    named = {str(scale): one for scale, one in enumerate(distances)}
    named |= {f"{_ANALOGUE}{scale}": one for scale, one in enumerate(places)}
    return {name: tensor.cpu().contiguous() for name, tensor in named.items()}


def _read_pair(path: Path, kinds: Sequence[str]) -> list[list[Tensor]]:
    """Read kinds of what is kept of a pair, each scale by scale."""
    with safe_open(path, framework="pt") as opened:
        scales = range(sum(key.isdigit() for key in opened.keys()))  # noqa: SIM118
        return [[opened.get_tensor(f"{kind}{scale}") for scale in scales] for kind in kinds]


def _save_states(path: Path, others: Sequence[str], states: tuple[RunningAverage, ...]) -> None:
    """Keep the state of every scale, and of which subjects it is."""
    tensors = {}
    for scale, state in enumerate(states):
        tensors[f"n_below.{scale}"] = state.n_below
        tensors[f"below.{scale}"] = state.below
        tensors[f"window.{scale}"] = state.window
    durable.make_folder(path.parent)
    with durable.replacing(path) as partial:
        save_file(tensors, partial, {"others": json.dumps(sorted(others))})


def _load_states(path: Path) -> tuple[list[str], tuple[RunningAverage, ...]]:
    """Read what `_save_states` kept."""
    with safe_open(path, framework="pt") as opened:
        others = json.loads(opened.metadata()["others"])
        get = opened.get_tensor
        scales = range(sum(key.startswith("window.") for key in opened.keys()))  # noqa: SIM118
        return others, tuple(
            RunningAverage(len(others), get(f"n_below.{s}"), get(f"below.{s}"), get(f"window.{s}"))
            for s in scales
        )


def _n_scales(keys: Sequence[str]) -> int:
    return sum(key.startswith("values.") for key in keys)


def _shape(tensor: Tensor) -> tuple[int, int, int]:
    depth, height, width = tensor.tolist()
    return depth, height, width


def _pack_bits(flags: Tensor) -> Tensor:
    """(n,) 0/1 uint8 -> (ceil(n / 8),) uint8."""
    padded = torch.nn.functional.pad(flags, (0, -flags.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _unpack_bits(packed: Tensor) -> Tensor:
    """(k,) uint8 -> (8 k,) 0/1 uint8."""
    return ((packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()
