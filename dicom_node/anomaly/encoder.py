"""The frozen vision transformer: slices -> patch features of intermediate layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dicom_node.anomaly.spec import EncoderSpec


@dataclass(frozen=True, slots=True)
class Architecture:
    """What timm knows of one of its vision transformers."""

    patch_size: int
    depth: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    licence: str


def architecture(name: str) -> Architecture:
    """Return what timm says of model `name`; raises ValueError when it is no ViT of timm's."""
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
    """Return the state that timm's own hub has for model `name`; raises OSError or RuntimeError."""
    model = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
    return dict(model.state_dict())


def build_encoder(spec: EncoderSpec, state: Mapping[str, Tensor], device: str) -> Encoder:
    """Build the timm model of `spec`, load `state` strictly, freeze it on `device`.

    Raises RuntimeError where the state does not fit the model.
    """
    model = timm.create_model(
        spec.timm_name, pretrained=False, num_classes=0, dynamic_img_size=True
    )
    model.load_state_dict(dict(state), strict=True)
    return Encoder(spec, model, device)


def native_bfloat16(device: str) -> bool:
    """Return whether `device` multiplies bf16 faster than fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - no public twin exists


class Encoder:
    """A frozen timm vision transformer on one device."""

    def __init__(self, spec: EncoderSpec, model: nn.Module, device: str) -> None:
        self.spec = spec
        self.dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
        self.device = device
        if device == "cpu":
            _unfuse_attention(model)
        self._model = model.eval().requires_grad_(requires_grad=False).to(device, self.dtype)
        self._mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std).view(1, 3, 1, 1)

    @torch.inference_mode()
    def encode(self, slices: Tensor, upsampling: int, batch: int | None = None) -> Tensor:
        """(n, rows, columns) grey in [0, 1] -> (layers, n, rows/p, columns/p, features) fp32.

        Rows and columns, enlarged, must be multiples of the patch size p. Grey is replicated to
        three channels and normalised as the weights' card says.
        """
        batch = batch or (2 if self.device == "cpu" else 32)  # two slices stay in a CPU's cache
        parts = [self._encode_batch(part, upsampling) for part in slices.split(batch)]
        return torch.cat(parts, dim=1)

    def _encode_batch(self, slices: Tensor, upsampling: int) -> Tensor:
        """(n, rows, columns) -> (layers, n, grid rows, grid columns, features) fp32."""
        x = nnf.interpolate(
            slices[:, None], scale_factor=upsampling, mode="bilinear", align_corners=False
        )  # n 1 R C
        x = ((x.expand(-1, 3, -1, -1) - self._mean) / self._std).to(self.device, self.dtype)
        features = self._model.forward_intermediates(  # type: ignore[operator]
            x,
            indices=list(self.spec.layers),
            norm=self.spec.final_norm,
            output_fmt="NCHW",
            intermediates_only=True,
            stop_early=True,  # blocks after the last wanted one are not run
        )
        stacked = torch.stack([f.float().cpu() for f in features])  # L n C R' C'
        return stacked.permute(0, 1, 3, 4, 2)


def _unfuse_attention(model: nn.Module) -> None:
    """Compute attention as two plain products: torch's fused CPU kernel is slower in bf16.

    Measured on two AVX512-BF16 cores, 392 x 322 slices: 97 against 135 ms a slice.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
