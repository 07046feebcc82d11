"""Lungs of made chests with planted lesions, and of the one real chest CT with its tumour."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from dicom_node import volume
from dicom_node.masks.lung import lung_mask
from tests.make.phantoms import AIR, LUNG, SOFT, make_chest


@pytest.fixture(scope="module")
def chest():
    return make_chest()


@pytest.fixture(scope="module")
def healthy(chest):
    return lung_mask(chest.voxels, chest.affine)


def share(mask, where):
    """Of the voxels `where`, how many are in the mask."""
    return np.count_nonzero(mask & where) / np.count_nonzero(where)


def test_the_mask_is_the_lungs_and_little_else(chest, healthy):
    lungs = chest.right | chest.left
    assert healthy.shape == chest.voxels.shape
    assert healthy.dtype == bool
    assert share(healthy, lungs) > 0.995
    assert np.count_nonzero(healthy & ~lungs) < 0.15 * np.count_nonzero(lungs)


@pytest.mark.parametrize(("part", "most"), [("heart", 0.2), ("below", 0.06), ("trachea", 0.02)])
def test_neither_heart_nor_liver_nor_trachea_is_lung(chest, healthy, part, most):
    assert share(healthy, getattr(chest, part)) < most


def test_gas_in_the_stomach_and_air_around_the_body_are_no_lung(chest, healthy):
    x, y, _ = chest.points
    assert not (healthy & ((x / 124) ** 2 + (y / 86) ** 2 > 1)).any()
    assert not (healthy & chest.gas).any()


# centre in LPS mm, radius, side of the patient, and the least share that is kept
LESIONS = {
    "at the lateral pleura": ((94, 0, 100), 18, "left", 0.99),
    "at the posterior pleura": ((58, 50, 110), 20, "left", 0.99),
    "at the anterior pleura": ((-58, -52, 110), 18, "right", 0.99),
    "at the mediastinum": ((22, 20, 120), 16, "left", 0.99),
    "inside the lung": ((-58, 0, 110), 15, "right", 0.99),
    "on the diaphragm": ((-58, 0, 75), 18, "right", 0.95),
    # no lung lies above it, and the other lung's mirror image differs too little
    "in the apex": ((58, 0, 175), 18, "left", 0.7),
}


@pytest.mark.parametrize("name", LESIONS)
def test_a_dense_lesion_is_kept(name, chest):
    centre, radius, side, least = LESIONS[name]
    lesion = chest.ball(centre, radius) & getattr(chest, side)
    # what the threshold alone would keep is nothing
    voxels = chest.filled(lesion)
    assert not (voxels[lesion] < -400).any()
    assert share(lung_mask(voxels, chest.affine), lesion) >= least


@pytest.mark.parametrize(
    ("side", "front", "least"),
    [("left", -99, 0.95), ("left", 5, 0.9), ("right", -99, 0.8)],
)
def test_a_filled_lower_lobe_is_kept(chest, side, front, least):
    _, y, z = chest.points
    lobe = getattr(chest, side) & (z < 95) & (y > front)
    mask = lung_mask(chest.filled(lobe), chest.affine)
    assert share(mask, lobe) >= least
    assert share(mask, chest.heart) < 0.35


def test_a_lung_that_is_filled_as_a_whole_is_taken_from_the_other(chest):
    mask = lung_mask(chest.filled(chest.left), chest.affine)
    assert share(mask, chest.left) > 0.9
    assert share(mask, chest.right) > 0.995


def test_a_bridge_of_air_between_the_lungs_changes_little(chest, healthy):
    x, y, z = chest.points
    bridge = (np.abs(x) < 30) & (np.abs(y - 15) < 4) & (np.abs(z - 140) < 8)
    mask = lung_mask(chest.filled(bridge, LUNG), chest.affine)
    changed = np.count_nonzero((mask ^ healthy) & ~bridge)
    assert changed < 0.03 * np.count_nonzero(healthy)
    assert share(mask, chest.heart) < 0.2


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (0, 2, 1)])
def test_the_axes_of_the_array_change_nothing(chest, healthy, order):
    voxels = np.flip(chest.voxels.transpose(order), 1)
    affine = chest.affine[:, [*order, 3]].copy()
    affine[:3, 3] += affine[:3, 1] * (voxels.shape[1] - 1)
    affine[:3, 1] *= -1
    mask = np.flip(lung_mask(voxels, affine), 1).transpose(np.argsort(order))
    assert np.count_nonzero(mask ^ healthy) < 1e-3 * np.count_nonzero(healthy)


def test_a_chest_that_is_cut_off_keeps_its_lungs_to_the_last_slice(chest):
    part = slice(15, 45)
    affine = chest.affine.copy()
    affine[:3, 3] += affine[:3, 0] * part.start
    mask = lung_mask(chest.voxels[part], affine)
    lungs = (chest.right | chest.left)[part]
    assert share(mask[0], lungs[0]) > 0.98
    assert share(mask[-1], lungs[-1]) > 0.98


def test_padding_far_below_air_is_air(chest, healthy):
    voxels = chest.voxels.copy()
    voxels[:, :6] = voxels[:, :, :4] = -2000.0
    mask = lung_mask(voxels, chest.affine)
    assert np.count_nonzero(mask ^ healthy) < 1e-3 * np.count_nonzero(healthy)


def test_a_head_has_no_lungs(chest):
    x, y, z = chest.points
    voxels = np.full(chest.voxels.shape, AIR, np.float32)
    voxels[x**2 + y**2 + (z - 100) ** 2 < 80**2] = SOFT
    voxels[chest.ball((0, -40, 90), 20)] = -850.0  # 34 ml of sinuses
    with pytest.raises(ValueError, match=r"no lungs: 3\d ml of aerated lung"):
        lung_mask(voxels, chest.affine)


def test_gas_in_the_bowel_alone_is_no_lungs(chest):
    voxels = chest.filled(chest.left | chest.right)
    voxels[chest.ball((30, 0, 100), 45)] = AIR  # 380 ml
    with pytest.raises(ValueError, match="no lungs: 0 ml"):
        lung_mask(voxels, chest.affine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, a: (np.abs(v), a), "no chest CT in Hounsfield units"),
        (lambda v, a: (v[0], a), "shape (84, 104)"),
        (lambda v, a: (np.where(v > 400, np.nan, v), a), "NaN or infinite"),
        (lambda v, a: (v, a * [[0, 1, 1, 1]]), "no inverse"),
    ],
)
def test_what_is_no_chest_ct_is_refused_by_its_fault(chest, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lung_mask(*change(chest.voxels, chest.affine))


def test_the_tumour_of_a_real_chest_is_kept(shared_data):
    folder = shared_data / "chest_ct_lungdx_A0001"
    scan = volume.build(sorted((folder / "dicom").glob("*.dcm")))
    mask = lung_mask(scan.voxels, scan.affine)
    uids = [str(ds.SOPInstanceUID) for ds in scan.headers]
    boxes = {uids.index(p.stem): _box(p) for p in (folder / "annotation_boxes").glob("*.xml")}
    assert len(boxes) == 11
    assert share(mask, _tumour(scan.voxels, boxes)) >= 0.99
    aerated = np.count_nonzero(mask & (scan.voxels < -400))
    assert 1.1 < np.count_nonzero(mask) / aerated < 1.25


def _box(path: Path):
    text = path.read_text("utf-8")
    low_x, low_y, high_x, high_y = (
        int(re.search(rf"<{key}>(\d+)<", text)[1]) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    return slice(low_y, high_y + 1), slice(low_x, high_x + 1)


def _tumour(voxels, boxes):
    """The tissue in each box that a ray from its centre reaches before bone; the largest part.

    The boxes hold lung, ribs and chest wall too. Bone of the neighbouring slices counts, closed by
    10 pixels, for ribs slant: what lies between and behind them is chest wall.
    """
    smooth = ndimage.uniform_filter(voxels, (1, 3, 3))
    parts, _ = ndimage.label(smooth > 200)
    bone = (np.bincount(parts.ravel()) > 5000)[parts] & (parts > 0)  # 18 ml: no calcium
    rows, columns = np.indices(voxels.shape[1:])
    disc = np.hypot(*np.mgrid[-10:11, -10:11]) <= 10
    tissue = np.zeros(voxels.shape, bool)
    for index, box in boxes.items():
        wall = bone[index - 1 : index + 2].any(0) & (rows >= 300)
        wall = ndimage.binary_closing(wall, disc)
        y, x = ((side.start + side.stop - 1) / 2 for side in box)
        radius = np.hypot(rows - y, columns - x)
        angle = (np.arctan2(rows - y, columns - x) / (2 * np.pi) % 1 * 360).astype(int) % 360
        nearest = np.full(360, np.inf)
        np.minimum.at(nearest, angle[wall], radius[wall])
        nearest = ndimage.minimum_filter1d(nearest, 3, mode="wrap")
        dense = (smooth[index] > -300) & (smooth[index] < 200) & (radius < nearest[angle])
        tissue[index][box] = dense[box]
    parts, _ = ndimage.label(ndimage.binary_opening(tissue, np.ones((1, 7, 7))))
    largest = parts == np.bincount(parts[parts > 0]).argmax()
    # the opening has cut off the spicules
    return ndimage.binary_dilation(largest, np.ones((1, 3, 3)), iterations=3) & tissue
