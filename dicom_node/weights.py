"""Weights file + SHA-256 + its card -> the encoder's state.

The digest is part of the fingerprint that keys the reference batch: tokens of two encoders are
never compared. Only safetensors are read, for they hold numbers and no code. Nothing is downloaded
here but from timm's hub, where the configuration says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dicom_node.anomaly.encoder import architecture, hub_state
from dicom_node.config import Encoder
from dicom_node.errors import ConfigError, WeightsMismatch, WeightsMissing
from dicom_node.weight_files import WeightsCard, find


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one configuration: their card, and the state when it is asked for."""

    #: with the digest of the file that was found; without one for weights from the hub
    card: WeightsCard
    #: timm's names -> tensors on the CPU
    state: Callable[[], dict[str, Tensor]]


def locate(encoder: Encoder, cache: Path) -> Weights:
    """Find the weights that `[encoder]` names.

    A digest in the configuration stands above the card's. For a file without a card one is made
    from timm's settings of the model.

    Raises
    ------
    WeightsMissing
        The file is not there; the message says how to get it. Or the hub cannot be reached.
    WeightsMismatch
        The file is not the one that was named: both digests, or both models, are in the message.
    ConfigError
        timm has no vision transformer of that name.
    """
    if encoder.weights == "hub":
        return _from_hub(encoder)
    found = find(encoder, cache)
    card = found.card or _card_of_timm(encoder.model, found.path.name)
    return Weights(replace(card, sha256=found.sha256), lambda: _load(found.path))


def _load(path: Path) -> dict[str, Tensor]:
    """Read the state; a file that no card vouches for may hold anything."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsMismatch(
            f"{path} is no safetensors file ({error}); set encoder.file to one"
        ) from error


def _card_of_timm(name: str, file_name: str) -> WeightsCard:
    """Make the card of weights that have none from timm's settings: right if trained as timm's."""
    try:
        known = architecture(name)
    except ValueError as error:
        raise ConfigError(f"encoder.model: {error}") from error
    return WeightsCard(
        name=file_name,
        timm_name=name,
        sha256="",
        patch_size=known.patch_size,
        mean=known.mean,
        std=known.std,
        # of an encoder of which nothing is measured: two thirds of the way
        layers=(round(known.depth * 2 / 3),),
        source=known.source,
        licence=known.licence,
    )


def _from_hub(encoder: Encoder) -> Weights:
    """Let timm fetch its own weights; raises WeightsMissing where there is no internet."""
    # the hub names no digest: weights that change there are not noticed
    card = _card_of_timm(encoder.model, f"timm hub {encoder.model}")
    try:
        state = hub_state(encoder.model)
    except (OSError, RuntimeError) as error:
        raise WeightsMissing(
            f"the weights of {encoder.model} cannot be fetched from timm's hub ({error}); "
            'set encoder.weights to "packaged" or "file"'
        ) from error
    return Weights(card, lambda: state)
