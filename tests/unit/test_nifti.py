"""NIfTI: the file's own grid, patient space, and what is refused."""

import nibabel
import numpy as np
import pytest

from dicom_node import nifti
from dicom_node.errors import IrregularGeometry, UnsupportedPixels

SHAPE = (9, 10, 11)
#: oblique, left-handed, anisotropic: nothing that a default would hide
AFFINE = np.array(
    [[-1.1, 0.2, 0.0, 40.3], [0.1, 1.7, -0.3, -20.7], [0.0, 0.4, 2.9, 5.1], [0, 0, 0, 1]]
).astype(np.float32)


def values(shape=SHAPE):
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def saved(folder, data, affine=AFFINE, name="a.nii.gz"):
    path = folder / name
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


def test_a_voxel_is_where_the_file_says_it_is(tmp_path):
    data = values()
    volume = nifti.read(saved(tmp_path, data))
    assert volume.voxels[4, 3, 2] == data[2, 3, 4]
    x, y, z, _ = AFFINE.astype(float) @ [2, 3, 4, 1]
    np.testing.assert_allclose(volume.affine @ [4, 3, 2, 1], [-x, -y, z, 1])
    assert volume.headers == ()


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
def test_what_is_written_has_the_grid_of_what_was_read(tmp_path, dtype):
    source = saved(tmp_path, (values() * 50).astype(np.int16))
    volume = nifti.read(source)
    voxels = np.abs(volume.voxels).astype(dtype)
    nifti.write(tmp_path / "b.nii.gz", voxels, volume.affine, "anomaly map")
    made = nibabel.load(tmp_path / "b.nii.gz")
    assert made.get_data_dtype() == dtype
    np.testing.assert_array_equal(made.affine, nibabel.load(source).affine)
    np.testing.assert_array_equal(np.asarray(made.dataobj), voxels.transpose(2, 1, 0))
    assert b"RESEARCH USE ONLY" in made.header["descrip"].item()


def test_the_same_voxels_make_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write(tmp_path / name, values(), np.eye(4), "anomaly map")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_the_scaling_of_the_file_is_applied(tmp_path):
    image = nibabel.Nifti1Image(np.full(SHAPE, 100, dtype=np.int16), AFFINE)
    image.header.set_slope_inter(0.5, -7.0)
    nibabel.save(image, tmp_path / "a.nii")
    voxels = nifti.read(tmp_path / "a.nii").voxels
    assert (voxels == 43.0).all()
    assert voxels.dtype == np.float32


def test_axes_of_one_after_the_third_are_no_series(tmp_path):
    assert nifti.read(saved(tmp_path, values((*SHAPE, 1, 1)))).voxels.shape == SHAPE[::-1]


@pytest.mark.parametrize(
    ("shape", "said"),
    [((9, 9, 9, 2), "9 x 9 x 9 x 2"), ((9, 9), "2 axes"), ((9, 9, 7), "at least 8")],
)
def test_what_is_not_one_volume_is_refused(tmp_path, shape, said):
    with pytest.raises(IrregularGeometry, match=said):
        nifti.read(saved(tmp_path, values(shape)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted_and_refused(tmp_path, bad):
    data = values()
    data[1, 2, 3] = data[3, 2, 1] = bad
    with pytest.raises(UnsupportedPixels, match="2 of 990 voxels"):
        nifti.read(saved(tmp_path, data))


def test_an_affine_without_inverse_is_refused(tmp_path):
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    image = nibabel.Nifti1Image(values(), None)
    image.set_sform(flat, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(IrregularGeometry, match="affine"):
        nifti.read(tmp_path / "a.nii")


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], np.complex64])
def test_colours_and_complex_numbers_are_refused(tmp_path, dtype):
    path = saved(tmp_path, np.zeros(SHAPE, dtype=dtype))
    with pytest.raises(UnsupportedPixels, match="not one number"):
        nifti.read(path)


@pytest.mark.parametrize("keep", [0, 100, 3000])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_that_ends_too_early_is_refused(tmp_path, keep, name):
    path = saved(tmp_path, values(), name=name)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnsupportedPixels, match="cannot be read"):
        nifti.read(path)


def test_what_is_no_nifti_under_such_a_name_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_text("no image at all", "utf-8")
    with pytest.raises(UnsupportedPixels, match="cannot be read"):
        nifti.read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("name", "stem"), [("a.nii", "a"), ("a.b.nii.gz", "a.b"), ("A.NII", "A"), ("a.b", "a.b")]
)
def test_the_stem_is_the_name_without_the_suffix(tmp_path, name, stem):
    assert nifti.stem(tmp_path / name) == stem
    assert nifti.is_nifti(tmp_path / name) == (name != "a.b")
