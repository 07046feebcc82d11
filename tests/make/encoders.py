"""A tiny frozen ViT of random weights: fast, deterministic, the same code path as the real one."""

import timm
import torch

from dicom_node.anomaly.encoder import Encoder
from dicom_node.anomaly.spec import EncoderSpec, ScaleSpec

TINY = "vit_tiny_patch16_224"
#: token edges of 16 and 8 voxels with the patch of 16
COARSE = ScaleSpec(upsampling=1, slices_per_token=4, layers=(0,))
FINE = ScaleSpec(upsampling=2, slices_per_token=1, layers=(0, 1))


def tiny_model():
    """A ViT of two blocks; features depend on the picture, not on training."""
    torch.manual_seed(7)
    return timm.create_model(
        TINY,
        pretrained=False,
        num_classes=0,
        dynamic_img_size=True,
        depth=2,
        embed_dim=48,
        num_heads=3,
    )


def tiny_encoder(patch_size: int = 16) -> Encoder:
    spec = EncoderSpec(TINY, patch_size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Encoder(spec, tiny_model(), "cpu", torch.float32)
