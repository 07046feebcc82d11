"""Registration of real heads to one of them: how often, how well, and what is refused.

No yardstick but the truth: a head is registered as it lies and displaced, and the two results must
differ by the displacement. A displaced head is sampled anew on an upright grid, as a scanner would
have it: what turns out of the field of view is lost. Real T1 heads lie in ../shared/data.
"""

from pathlib import Path

import numpy as np
import SimpleITK
from scipy.spatial.transform import Rotation

from dicom_node import nifti
from dicom_node.alignment import align, make_template
from dicom_node.errors import EmptyForeground, RegistrationFailed
from tests.benchmark.measure import in_child, median, say, table, timed

HEADS = Path(__file__).parents[3] / "shared" / "data" / "brain_t1w_normal_ixi_2mm"
CHEST = Path(__file__).parents[3] / "shared" / "data" / "chest_ct_lungdx_A0001" / "dicom"
N_DISPLACED = 20
#: rotation about each axis, shift along each, change of each length
DEGREES, MILLIMETRES, SCALE = 30.0, 40.0, 0.15
#: each of so many heads gets every planted failure
N_FAILURES = 8
FLIPS = {"left-right": 0, "front-back": 1, "upside down": 2}


def run(setting):
    paths = sorted(HEADS.glob("*_T1.nii.gz"))
    if not paths:
        say(f"There are no heads in {HEADS}: nothing was measured.\n")
        return
    if setting.small:
        paths = paths[:3]
    for kind in ("affine", "rigid"):
        in_child(measured, paths, kind)


def measured(paths, kind):
    """One kind: as they lie, displaced, and planted failures."""
    heads = [read(path) for path in paths]
    template, others = make_template(*heads[0]), heads[1:]
    seconds, plain = [], []
    for head in others:
        seconds.append(timed(lambda head=head: plain.append(attempt(head, template, kind))))
    say(f"{kind}: {sum(map(usable, plain))} of {len(others)} heads as they lie brought to the ")
    say(f"first; {median(seconds):.1f} s each.\n")
    displaced(others, plain, template, kind)
    failures(others[:N_FAILURES], template, kind)


def failures(heads, template, kind):
    """What must not pass: another pose than a head can have, a part of one, another body part."""
    refused = {
        **{name: [flipped(head, axis) for head in heads] for name, axis in FLIPS.items()},
        "upper half": [half(head, upper=True) for head in heads],
        "lower half": [half(head, upper=False) for head in heads],
        "chest (CT)": [chest()] if CHEST.is_dir() else [],
    }
    rows = []
    for name, planted in refused.items():
        found = [attempt(each, template, kind) for each in planted]
        why = sorted({each for each in found if not usable(each)})
        caught = sum(not usable(each) for each in found)
        rows.append((name, f"{caught} of {len(planted)}", ", ".join(why)))
    table(["planted failure", "refused", "by"], *rows)


def displaced(heads, plain, template, kind):
    """Target error in the template's foreground, of displacements drawn at random."""
    rng = np.random.default_rng(0)
    places = np.argwhere(template.foreground)[::97] @ template.affine[:3, :3].T
    points = np.c_[places + template.affine[:3, 3], np.ones(len(places))]
    errors, refused = [], []
    usable_ones = [at for at, found in enumerate(plain) if usable(found)]
    for turn in range(min(N_DISPLACED, 2 * len(usable_ones))):
        at = usable_ones[turn % len(usable_ones)]
        moved, matrix = move(heads[at], rng, scaled=kind != "rigid")
        found = attempt(moved, template, kind)
        if not usable(found):
            refused.append(found)
            continue
        expected = points @ plain[at].to_source.T @ matrix.T
        apart = np.linalg.norm((points @ found.to_source.T - expected)[:, :3], axis=1)
        errors.append(float(np.median(apart)))
    errors = errors or [np.nan]
    say(
        f"{kind}, displaced: median of the heads' median target errors {median(errors):.2f} mm "
        f"({min(errors):.2f} to {max(errors):.2f}), {len(refused)} of {turn + 1} refused "
        f"({', '.join(refused) or 'none'}).\n"
    )


def attempt(head, template, kind):
    """What a head comes to: its alignment, or by which limit it was refused."""
    try:
        return align(*head, template, kind)
    except RegistrationFailed as error:
        return error.criterion
    except EmptyForeground:
        return "foreground"


def usable(found):
    return not isinstance(found, str)


def read(path):
    source = nifti.read(path)
    return np.asarray(source.voxels, np.float32), np.asarray(source.affine, np.float64)


def chest():
    """Another body part of another modality: the real chest, at every fourth pixel."""
    from dicom_node import volume

    source = volume.build(sorted(CHEST.glob("*.dcm")))
    affine = source.affine @ np.diag([1.0, 4.0, 4.0, 1.0])
    return volume.not_below_air(source.voxels)[:, ::4, ::4].astype(np.float32), affine


def move(head, rng, *, scaled):
    """A head turned, shifted and stretched about its middle; and (4, 4) mm -> mm, which did it."""
    voxels, affine = head
    turn = Rotation.from_euler("xyz", rng.uniform(-DEGREES, DEGREES, 3), degrees=True).as_matrix()
    sizes = 1.0 + (rng.uniform(-SCALE, SCALE, 3) if scaled else np.zeros(3))
    middle = (affine @ [*(np.array(voxels.shape) - 1) / 2, 1.0])[:3]
    matrix = np.eye(4)
    matrix[:3, :3] = turn * sizes
    matrix[:3, 3] = middle + rng.uniform(-MILLIMETRES, MILLIMETRES, 3) - matrix[:3, :3] @ middle
    return sampled(head, matrix), matrix


def sampled(head, matrix):
    """A moved head on the grid of the head, shifted along: the table follows the patient."""
    voxels, affine = head
    middle = affine @ [*(np.array(voxels.shape) - 1) / 2, 1.0]
    grid = affine.copy()
    grid[:3, 3] += (matrix @ middle - middle)[:3]
    to_head = np.linalg.inv(affine) @ np.linalg.inv(matrix) @ grid
    # both in index units, whose order SimpleITK turns round
    order = [2, 1, 0]
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(to_head[:3, :3][np.ix_(order, order)].ravel().tolist())
    transform.SetTranslation(to_head[:3, 3][order].tolist())
    image = SimpleITK.GetImageFromArray(voxels)
    moved = SimpleITK.Resample(image, image, transform, SimpleITK.sitkLinear, float(voxels.min()))
    return SimpleITK.GetArrayFromImage(moved), grid


def flipped(head, axis):
    """A head mirrored along a patient axis: its voxels, as a wrong header would have them."""
    voxels, affine = head
    along = int(np.abs(affine[axis, :3]).argmax())
    return np.flip(voxels, along).copy(), affine


def half(head, *, upper):
    """A head cut in the middle, from above or below."""
    voxels, affine = head
    along = int(np.abs(affine[2, :3]).argmax())
    n = voxels.shape[along] // 2
    first = upper == (affine[2, along] < 0)
    start = 0 if first else n
    cut = np.take(voxels, range(start, start + n), axis=along)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, along] * start
    return cut, moved
