"""Brains of a real head by the real networks, and what is done before and behind them."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from dicom_node import nifti
from dicom_node.errors import NodeError
from dicom_node.folders import cache_folder
from dicom_node.masks import brain
from dicom_node.masks.brain import brain_mask, prepare_networks

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def head(shared_data):
    return nifti.read(shared_data / "brain_t1w_normal_ixi_2mm" / "IXI080-HH-1341_T1.nii.gz")


@pytest.fixture(scope="module")
def real(head):
    return brain_mask(head.voxels, head.affine, cache_folder())


def test_the_networks_are_fetched_once_and_found_again():
    first = prepare_networks(cache_folder())
    before = [path.stat().st_mtime_ns for path in first]
    assert [path.name for path in first] == ["bbox_model.pt", "model.pt"]
    assert [path.stat().st_mtime_ns for path in prepare_networks(cache_folder())] == before


def test_without_the_networks_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(NodeError, match=r"deepbet==1\.0\.2.*DICOM_NODE_CACHE"):
        brain_mask(np.ones((8, 8, 8), np.float32), np.eye(4), tmp_path)


def test_the_mask_of_a_real_head_is_one_brain_without_holes(head, real):
    assert real.shape == head.voxels.shape
    assert real.dtype == bool
    volume_ml = real.sum() * abs(np.linalg.det(head.affine[:3, :3])) / 1000
    assert 1150 < volume_ml < 1400  # 1278 by the authors' own program
    assert ndimage.label(real, np.ones((3, 3, 3)))[1] == 1
    assert not (ndimage.binary_fill_holes(real) & ~real).any()


def test_neither_scalp_nor_neck_is_brain(head, real):
    z = head.affine[2, :3] @ np.indices(head.voxels.shape).reshape(3, -1) + head.affine[2, 3]
    height = z.reshape(head.voxels.shape)
    top = height[real].max()
    assert top - height[real].min() < 160
    bright = head.voxels > np.percentile(head.voxels, 99.8)  # fat of scalp and neck
    assert np.count_nonzero(bright & real) < 0.2 * np.count_nonzero(bright)


def test_the_axes_of_the_array_change_nothing(head, real):
    """An exact permutation, for the networks see the same head."""
    order = (2, 0, 1)
    voxels = np.flip(head.voxels.transpose(order), (0, 1))
    affine = head.affine[:, [*order, 3]].copy()
    for axis in (0, 1):
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1
    mask = brain_mask(voxels, affine, cache_folder())
    assert np.array_equal(np.flip(mask, (0, 1)).transpose(np.argsort(order)), real)


@pytest.mark.parametrize("seed", range(6))
def test_axes_are_brought_to_right_anterior_superior(seed):
    random = np.random.default_rng(seed)
    order, signs = random.permutation(3), random.choice([-1.0, 1.0], 3)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs * random.uniform(0.5, 4, 3)
    affine[:3, :3] += random.uniform(-0.1, 0.1, (3, 3))  # oblique
    found, flips = brain._to_ras(affine)
    turned = (LPS_TO_RAS @ affine)[:3, found]
    for axis in flips:
        turned[:, axis] *= -1
    assert (np.diag(turned) > 0).all()
    assert (np.abs(turned).argmax(0) == np.arange(3)).all()


def test_the_box_has_the_margin_of_the_authors():
    rough = np.zeros((128, 128, 128), bool)
    rough[32:96, 32:96, 0:64] = True
    # 64 voxels of 2 and 1 and 0.5 source voxels, 20 % more, cut at the border of the source
    assert brain._brain_box(rough, (256, 128, 64)) == (
        slice(51, 205),
        slice(25, 102),
        slice(0, 35),
    )


def test_planes_of_single_voxels_do_not_widen_the_box():
    rough = np.zeros((128, 128, 128), bool)
    rough[32:96, 32:96, 32:96] = True
    plain = brain._brain_box(rough, (128, 128, 128))
    rough[0, 60:70, 60:70] = True
    assert brain._brain_box(rough, (128, 128, 128)) == plain


def test_intensities_are_clipped_and_brought_to_the_mean_of_the_training():
    volume = torch.linspace(-50, 150, 1000).reshape(10, 10, 10)
    found = brain._normalized(volume, 0.0, 100.0)
    assert float(found.mean()) == pytest.approx(0.449, abs=1e-4)
    assert float(found.std()) == pytest.approx(0.226, abs=1e-4)
    assert float(found[0, 0, 0]) == float(found.min()) == float(found[2, 0, 0])


def _threshold(volume):
    """What a perfect network for a bright brain would answer."""
    bright = (volume > 0.6).float()
    return torch.cat([1 - bright, bright], 1)


def test_the_largest_part_is_kept_filled_and_put_where_it_was():
    head = torch.zeros(60, 50, 40)
    head[20:44, 12:36, 8:30] = 1.0
    head[30:34, 20:24, 16:20] = 0.0  # a ventricle
    head[2:8, 40:46, 2:8] = 1.0  # an eye
    found = brain._infer(head, _threshold, _threshold)
    wanted = np.zeros((60, 50, 40), bool)
    wanted[20:44, 12:36, 8:30] = True
    assert np.array_equal(found, wanted)


def test_a_volume_of_one_value_is_no_head():
    with pytest.raises(ValueError, match="one value alone"):
        brain._infer(torch.ones(20, 20, 20), _threshold, _threshold)


def test_a_head_in_which_the_network_finds_nothing_is_refused():
    with pytest.raises(ValueError, match="no brain was found"):
        brain._infer(torch.rand(20, 20, 20), lambda v: torch.zeros(1, 2, *v.shape[2:]), _threshold)


@pytest.mark.parametrize("volume_ml", [299.0, 2501.0])
def test_a_mask_that_is_no_brain_is_refused_by_its_volume(volume_ml):
    with pytest.raises(ValueError, match=f"has {volume_ml:.0f} ml"):
        brain._check_volume(volume_ml)


@pytest.mark.parametrize(
    ("voxels", "affine", "message"),
    [
        (np.ones((8, 8), np.float32), np.eye(4), r"shape \(8, 8\)"),
        (np.full((8, 8, 8), np.nan, np.float32), np.eye(4), "NaN or infinite"),
        (np.ones((8, 8, 8), np.float32), np.zeros((4, 4)), "no inverse"),
    ],
)
def test_what_is_no_volume_is_refused_before_anything_is_fetched(voxels, affine, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        brain_mask(voxels, affine, tmp_path)
    assert list(tmp_path.iterdir()) == []
