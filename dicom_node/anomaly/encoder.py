"""The frozen vision transformer: slices -> patch features of intermediate layers.

The only importer of timm. The model is never trained here; its weights come as a state from
:mod:`dicom_node.weights`, but for timm's own hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as nnf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dicom_node.anomaly.spec import EncoderSpec, ScaleSpec


@dataclass(frozen=True, slots=True)
class Architecture:
    """What timm knows of one of its vision transformers: the card of weights that have none."""

    patch_size: int
    #: number of blocks
    depth: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    licence: str


def architecture(name: str) -> Architecture:
    """Return what timm says of model `name`, without its weights.

    Raises ValueError when timm has no such model, or it is no vision transformer.
    """
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*dino*")[:3])
        raise ValueError(f"timm has no model {name!r}; for example {close}")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    if not hasattr(model, "blocks") or not hasattr(model, "patch_embed"):
        raise ValueError(f"timm's {name!r} is no vision transformer")
    settings = model.pretrained_cfg
    return Architecture(
        patch_size=int(model.patch_embed.patch_size[0]),
        depth=len(model.blocks),
        mean=settings["mean"],
        std=settings["std"],
        source=str(settings.get("hf_hub_id") or settings.get("url") or "local file"),
        licence=str(settings.get("license") or "unknown"),
    )


def hub_state(name: str) -> dict[str, Tensor]:
    """Return the state that timm's own hub has for model `name`, which may download it.

    Raises OSError or RuntimeError where it cannot be fetched.
    """
    model = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
    return dict(model.state_dict())


def build_encoder(
    spec: EncoderSpec, state: Mapping[str, Tensor], device: str, *, compiled: bool = False
) -> Encoder:
    """Build the timm model of `spec`, load `state` strictly, freeze it on `device`.

    Strictly: a tensor that is missing would stay random, and give scores without complaint. Raises
    RuntimeError where the state does not fit the model, or `compiled` is asked for and torch finds
    no compiler.
    """
    model = timm.create_model(
        spec.timm_name, pretrained=False, num_classes=0, dynamic_img_size=True
    )
    model.load_state_dict(dict(state), strict=True)
    encoder = Encoder(spec, model, device)
    if compiled:
        encoder.compile()
    return encoder


def native_bfloat16(device: str) -> bool:
    """Return whether `device` multiplies bf16 faster than fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - no public twin exists


class Encoder:
    """A frozen timm vision transformer on one device; it takes and gives tensors on the CPU."""

    def __init__(
        self, spec: EncoderSpec, model: nn.Module, device: str, dtype: torch.dtype | None = None
    ) -> None:
        """Freeze `model`; `dtype` is bf16 where `device` has it, fp32 otherwise, if left out."""
        self.spec = spec
        fastest = torch.bfloat16 if native_bfloat16(device) else torch.float32
        self.dtype = dtype or fastest
        self.device = device
        if device == "cpu" and self.dtype is torch.bfloat16:
            _unfuse_attention(model)
        #: number of blocks
        self.depth = len(model.blocks)  # type: ignore[arg-type]
        #: length of a feature vector
        self.width = int(model.num_features)  # type: ignore[arg-type]
        self._keeper = _keeper_for(model)
        self._model = model.eval().requires_grad_(requires_grad=False).to(device, self.dtype)
        self._mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std).view(1, 3, 1, 1)

    def compile(self) -> None:
        """Let `torch.compile` fuse the blocks, here and now; features change within rounding.

        Block by block, whose code is one: the sequences of kept patches differ in length from slice
        to slice, and the whole model would be compiled again for many of them. Takes a minute. On
        the CPU it gains nothing that could be measured, so that it is for other devices. Raises
        RuntimeError where there is no compiler, rather than when the first study comes.
        """
        for block in self._model.blocks:  # type: ignore[union-attr]
            block.compile(dynamic=True)
        edge = 4 * self.spec.patch_size
        slices, some = torch.zeros(2, edge, edge), torch.ones(2, 4, 4, dtype=torch.bool)
        some[0, 0] = False  # with a mask of attention and without: both are compiled
        for kept in (some, torch.ones_like(some)):
            self.encode(slices, kept, ScaleSpec(1, 2, (self.depth - 1,)))

    @torch.inference_mode()
    def encode(
        self, slices: Tensor, kept: Tensor, scale: ScaleSpec, batch: int | None = None
    ) -> Tensor:
        """(n, rows, columns) grey in [0, 1] -> (layers, n, rows/p, columns/p, features) fp32.

        `scale` says how slices are enlarged and which layers are wanted; later ones are not run.
        Rows and columns, enlarged, must be multiples of the patch size p. Grey is replicated to
        three channels and normalised as the weights' card says. Patches that `kept`,
        (n, rows/p, columns/p), leaves out are zero; they are not run through the blocks, and the
        others do not attend to them. `batch` slices are encoded at once, by default as many as the
        device has memory for, and fewer where that was too many; it does not change the features
        beyond rounding. Raises torch.OutOfMemoryError where a single slice does not fit.
        """
        batch = batch or self._batch_size(slices, scale)
        parts, done = [], 0
        while done < len(slices):
            some = slice(done, done + batch)
            try:
                parts.append(self._encode_batch(slices[some], kept[some], scale))
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2  # what others hold of the memory is not ours to know
                torch.cuda.empty_cache()
                continue
            done += batch
        return torch.cat(parts, dim=1)

    def _batch_size(self, slices: Tensor, scale: ScaleSpec) -> int:
        """Return how many slices are encoded at once, by the device's free memory."""
        if not self.device.startswith("cuda"):
            # the slices of one token keep the same patches; more would be padded to the longest
            return scale.slices_per_token
        free, _ = torch.cuda.mem_get_info(self.device)
        n_patches = slices[0].numel() * scale.upsampling**2 // self.spec.patch_size**2
        # a block's intermediates: a few tens of vectors per patch, and attention without its matrix
        per_slice = n_patches * self.width * 64 * self.dtype.itemsize
        return int(min(max(1, free // 2 // per_slice), 256))

    def _encode_batch(self, slices: Tensor, kept: Tensor, scale: ScaleSpec) -> Tensor:
        """(n, rows, columns) -> (layers, n, grid rows, grid columns, features) fp32."""
        x = nnf.interpolate(
            slices[:, None], scale_factor=scale.upsampling, mode="bilinear", align_corners=False
        )  # n 1 R C
        x = ((x.expand(-1, 3, -1, -1) - self._mean) / self._std).to(self.device, self.dtype)
        flat = kept.flatten(1)  # n P
        if self._keeper is None:  # every patch is run, the unwanted ones are dropped afterwards
            packed, valid = self._intermediates(x, scale.layers, None), flat
        else:
            index, valid = _packed_index(flat)  # n K, n K
            self._keeper.index = index.to(self.device)
            packed = self._intermediates(x, scale.layers, self._attention_mask(valid))
        full = packed.new_zeros(packed.shape[0], *flat.shape, packed.shape[-1])  # L n P F
        full[:, flat] = packed[:, valid]
        grid: Tensor = full.unflatten(2, kept.shape[1:])
        return grid

    def _intermediates(
        self, x: Tensor, layers: Sequence[int], attention_mask: Tensor | None
    ) -> Tensor:
        """(n, 3, R, C) -> (layers, n, patches, features) fp32."""
        extra = {} if attention_mask is None else {"attn_mask": attention_mask}
        features = self._model.forward_intermediates(  # type: ignore[operator]
            x,
            indices=list(layers),
            norm=self.spec.final_norm,
            output_fmt="NLC",
            intermediates_only=True,
            stop_early=True,  # blocks after the last wanted one are not run
            **extra,
        )
        return torch.stack([f.float().cpu() for f in features])

    def _attention_mask(self, valid: Tensor) -> Tensor | None:
        """(n, K) which places of the packed sequences are patches -> additive (n, 1, 1, T) mask."""
        if self._keeper is None or bool(valid.all()):
            return None
        seen = nnf.pad(valid, (self._keeper.n_prefix, 0), value=True)
        mask = torch.zeros(seen.shape, dtype=self.dtype).masked_fill(~seen, -torch.inf)
        return mask[:, None, None].to(self.device)


class _PatchKeeper(nn.Module):
    """Stands where timm drops patches in training: after the position embedding, before block 0."""

    def __init__(self, n_prefix: int) -> None:
        super().__init__()
        self.n_prefix = n_prefix
        #: (n, K) of each sequence's patches that stay
        self.index = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """(n, prefix + patches, features) -> (n, prefix + K, features)."""
        index = self.index[..., None].expand(-1, -1, x.shape[-1])
        return torch.cat([x[:, : self.n_prefix], x[:, self.n_prefix :].gather(1, index)], dim=1)


def _keeper_for(model: nn.Module) -> _PatchKeeper | None:
    """Put a patch keeper into a plain vision transformer; None where timm has another forward."""
    if not isinstance(model, VisionTransformer):
        return None
    keeper = _PatchKeeper(model.num_prefix_tokens)
    model.patch_drop = keeper
    return keeper


def _packed_index(flat: Tensor) -> tuple[Tensor, Tensor]:
    """(n, P) kept flags -> (n, K) patch indices, kept ones first, and which of them are kept."""
    longest = max(1, int(flat.sum(1).max()))
    index = flat.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    return index, flat.gather(1, index)


def _unfuse_attention(model: nn.Module) -> None:
    """Compute attention as two plain products: torch's fused CPU kernel is slower in bf16.

    Measured on two AVX512-BF16 cores, 392 x 322 slices: 97 against 135 ms a slice.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
