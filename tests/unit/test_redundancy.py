"""How much each subject of a batch adds to it, against plain loops."""

import pytest

from dicom_node.anomaly.spec import SearchSpec
from dicom_node.redundancy import nearest_distances
from dicom_node.reference_files import ReferenceFiles
from tests.make.subjects import keep, subject


def loops(files, names):
    """The least mean distance to another one: over tokens and layers, scales, both directions."""

    def one_way(name, other):
        scales = [scale[0].flatten().tolist() for scale in files.distances(name, [other])]
        return sum(sum(values) / len(values) for values in scales) / len(scales)

    return [min((one_way(a, b) + one_way(b, a)) / 2 for b in names if b != a) for a in names]


@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_subject_adds_its_distance_to_the_one_that_is_most_like_it(tmp_path, n):
    files, names = keep(tmp_path, range(n))
    assert nearest_distances(files, names) == pytest.approx(loops(files, names))
    backwards = nearest_distances(files, names[::-1])
    assert backwards == pytest.approx(loops(files, names[::-1]))


def test_two_that_are_nearly_the_same_add_least_and_the_same(tmp_path):
    files, names = keep(tmp_path, range(5))
    twin = subject(2)
    twin.tokens[1].values[0, 0, 0] += 0.1
    files.save_subject("twin of s2", twin)
    found = dict(
        zip([*names, "twin of s2"], nearest_distances(files, [*names, "twin of s2"]), strict=True)
    )
    assert found["s2"] == found["twin of s2"]
    assert sorted(found, key=found.get)[:2] == ["s2", "twin of s2"]


def test_kept_distances_are_read_and_not_measured_again(tmp_path):
    files, names = keep(tmp_path, range(4))
    first = nearest_distances(files, names)
    for path in tmp_path.glob("tokens/*/*"):
        path.unlink()
    assert nearest_distances(ReferenceFiles(tmp_path, "f", SearchSpec()), names) == first


def test_a_subject_alone_is_far_from_all(tmp_path):
    files, names = keep(tmp_path, range(1))
    assert nearest_distances(files, names) == [float("inf")]
    assert nearest_distances(files, []) == []
