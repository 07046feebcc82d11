"""Batch mode on tiny scans and a tiny encoder: maps on the scans' own grids, tables, resuming."""

import csv
import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from dicom_node import __version__, nifti, placement
from dicom_node.alignment import Alignment
from dicom_node.batch_mode import Listener, score_batch
from dicom_node.errors import ConfigError
from dicom_node.pipeline import score_batch as of_the_pipeline
from tests.make import lines, scans
from tests.make.instances import Geometry, write


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


class Heard(Listener):
    def __init__(self):
        self.notes, self.done, self.shares = [], [], []

    def progress(self, stage, number, share, name):
        self.shares.append((stage, number + share))
        if share == 1:
            self.done.append((stage, name))

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def score(tmp_path, weights):
    """Score `tmp_path/in`; returns the result and what was said."""

    def run(protocol=None, **options):
        heard = Heard()
        options.setdefault("protocol_name", "t1")
        result = score_batch(
            [tmp_path / "in"],
            tmp_path / "out",
            tmp_path / "cache",
            config=scans.config(weights, **(protocol or {})),
            listener=heard,
            **options,
        )
        return result, heard

    return run


def with_blob(seed):
    """A head with a dark cube, and the cube."""
    voxels = lines.head(seed).copy()
    inside = np.zeros(voxels.shape, dtype=bool)
    inside[5:11, 12:22, 12:22] = True
    voxels[inside] = 0
    return voxels, inside


# -- what is made -----------------------------------------------------------------------------


def test_every_scan_gets_maps_on_its_own_grid_a_picture_and_a_row(score, tmp_path):
    affine = scans.AFFINE.copy()
    affine[:3, :2] = affine[:3, [1, 0]]  # another order of the axes, and oblique
    affine[:3, :3] = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]]) @ affine[:3, :3]
    scans.write_heads(tmp_path / "in", 4)
    oblique = scans.write_scan(
        tmp_path / "in", "oblique_t1", lines.head(9).transpose(1, 0, 2), affine
    )
    result, heard = score()
    assert (result.failed, result.left_out, result.evaluation) == ((), (), None)
    assert [entry.n_reference for entry in result.scored] == [4] * 5
    scores = [entry.score for entry in result.scored]
    assert scores == sorted(scores, reverse=True)
    for kind in ("maps", "raw"):
        for source in [*(tmp_path / "in").glob("head*"), oblique]:
            made, own = (
                nibabel.load(path) for path in (tmp_path / "out" / kind / source.name, source)
            )
            assert made.shape == own.shape
            np.testing.assert_array_equal(made.affine, own.affine)
            assert made.get_data_dtype() == np.float32
            assert np.ptp(np.asarray(made.dataobj)) > 0
    pictures = sorted((tmp_path / "out" / "pictures").iterdir())
    assert [path.stem for path in pictures] == sorted(entry.name for entry in result.scored)
    with Image.open(pictures[0]) as picture:
        assert picture.width > 500
    assert heard.done[:5] == [("encode", f"head{k}_t1") for k in range(4)] + [
        ("encode", "oblique_t1")
    ]
    assert len(heard.done) == 10
    assert heard.shares == sorted(heard.shares)  # "encode" before "score", and never back


def test_both_tables_say_what_made_the_scores(score, tmp_path):
    scans.write_heads(tmp_path / "in", 4)
    result, _ = score({"finding_threshold": 0.5})
    with (tmp_path / "out" / "scores.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    table = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert [row["name"] for row in rows] == [entry.name for entry in result.scored]
    for row in [*rows, table]:
        assert row["method"] == "t1"
        assert row["fingerprint"] == result.recipe.fingerprint
        assert row["version"] == __version__
        assert row["notice"] == "RESEARCH USE ONLY - NOT FOR DIAGNOSIS"
    assert table["evaluation"] is None
    assert any(entry["findings"] for entry in table["subjects"])
    for entry, made in zip(table["subjects"], result.scored, strict=True):
        assert entry["score"] == made.score
        assert [f["peak_mm"] for f in entry["findings"]] == [list(f.peak_mm) for f in made.findings]
        for file in ("map", "raw_map", "picture"):
            assert (tmp_path / "out" / entry[file]).is_file()


def test_a_lesion_is_found_at_its_place_and_agrees_with_its_mask(score, tmp_path):
    scans.write_heads(tmp_path / "in", 6)
    voxels, inside = with_blob(50)
    scans.write_scan(tmp_path / "in", "ill_t1", voxels)
    scans.write_scan(tmp_path / "in", "ill_label", inside)
    scans.write_scan(tmp_path / "in", "head0_label", np.zeros(inside.shape))
    scans.write_scan(tmp_path / "in", "nobody_label", inside)
    result, heard = score({"finding_threshold": 2.0})
    assert result.scored[0].name == "ill_t1"
    made = nifti.read(tmp_path / "out" / "maps" / "ill_t1.nii.gz").voxels
    body = voxels > 100
    assert made[inside].mean() > 2 * np.abs(made[body & ~inside]).mean()
    report = result.evaluation
    assert report.n_subjects == 2
    assert report.calibrated.auroc > 0.9
    assert report.calibrated.average_precision > 3 * report.prevalence
    assert report.z_score.auroc > 0.9
    assert [size.n_found for size in report.lesions] == [0, 0, 1, 0, 0]  # 1.2 ml
    assert report.subject_auroc == 1.0
    assert [note for note in heard.notes if "nobody_label" in note] == heard.notes
    table = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert table["evaluation"]["calibrated"]["auroc"] == report.calibrated.auroc


def test_of_a_ct_padding_is_air(score, tmp_path):
    for seed in range(4):
        hounsfield = lines.head(seed) * 0.2 - 1000
        hounsfield[:, :2] = -3024 if seed else -1000
        scans.write_scan(tmp_path / "in", f"chest{seed}", hounsfield)
    result, _ = score({"intensity": "hounsfield", "calibration": "none", "finding_threshold": 9})
    assert len(result.scored) == 4
    assert all(entry.score < 100 for entry in result.scored)


# -- again ------------------------------------------------------------------------------------


def test_a_second_run_encodes_nothing_and_says_the_same(score, tmp_path):
    scans.write_heads(tmp_path / "in", 4)
    first, _ = score()
    assert all(entry.encode_s > 0 for entry in first.scored)
    before = (tmp_path / "out" / "maps" / "head1_t1.nii.gz").read_bytes()
    second, _ = score()
    assert all(entry.encode_s == 0 for entry in second.scored)
    assert [(e.name, e.score) for e in second.scored] == [(e.name, e.score) for e in first.scored]
    assert (tmp_path / "out" / "maps" / "head1_t1.nii.gz").read_bytes() == before


def test_only_what_is_new_is_encoded_and_a_changed_scan_is_new(score, tmp_path):
    scans.write_heads(tmp_path / "in", 4)
    score()
    scans.write_scan(tmp_path / "in", "head1_t1", lines.head(77))
    scans.write_heads(tmp_path / "in", 1, first=4)
    result, _ = score()
    assert {entry.name for entry in result.scored if entry.encode_s} == {"head1_t1", "head4_t1"}


def test_another_method_meets_no_token_of_the_first(score, tmp_path):
    scans.write_heads(tmp_path / "in", 4)
    score()
    result, _ = score({"spacing_mm": 2.0})
    assert all(entry.encode_s > 0 for entry in result.scored)


# -- what cannot be scored --------------------------------------------------------------------


def test_too_few_scans_are_refused_with_their_number_before_anything_is_made(score, tmp_path):
    scans.write_heads(tmp_path / "in", 3)
    with pytest.raises(ConfigError, match=r"3 scans of 3 patients.*at least 4"):
        score()
    assert not (tmp_path / "out").exists()


def test_too_few_are_left_when_others_cannot_be_scored(score, tmp_path):
    scans.write_heads(tmp_path / "in", 3)
    scans.write_scan(tmp_path / "in", "broken", np.full((16, 32, 32), np.nan))
    with pytest.raises(ConfigError, match="3 scans of 3 patients"):
        score()


def test_a_scan_that_fails_is_named_and_stops_nobody(score, tmp_path):
    scans.write_heads(tmp_path / "in", 4)
    voxels = lines.head(8).copy()
    voxels[3, 4, 5] = np.nan
    scans.write_scan(tmp_path / "in", "holes", voxels)
    scans.write_scan(tmp_path / "in", "flat", np.ones((16, 32, 32)))
    image = nibabel.Nifti1Image(np.zeros((9, 9, 9, 5), dtype=np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "in" / "bold.nii")
    result, heard = score()
    assert len(result.scored) == 4
    reasons = dict(result.failed)
    assert sorted(reasons) == ["bold", "flat", "holes"]
    assert "9 x 9 x 9 x 5" in reasons["bold"]
    assert "one value" in reasons["flat"]
    assert "1 of 16384 voxels" in reasons["holes"]
    assert [note.split(" failed")[0] for note in heard.notes] == ["bold", "flat", "holes"]
    table = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert {entry["name"] for entry in table["failed"]} == set(reasons)


def test_a_mask_that_cannot_be_read_undoes_no_score(score, tmp_path):
    scans.write_heads(tmp_path / "in", 4)
    (tmp_path / "in" / "head2_label.nii.gz").write_bytes(b"nothing")
    result, _ = score()
    assert len(result.scored) == 4
    assert [name for name, _ in result.failed] == ["the mask of head2_t1"]
    assert result.evaluation is None


def test_copies_of_one_scan_are_not_compared_with_each_other(score, tmp_path):
    scans.write_heads(tmp_path / "in", 4)
    scans.write_scan(tmp_path / "in", "copy", lines.head(1))
    result, heard = score()
    same = {entry.name: entry.same_patient for entry in result.scored}
    assert same["copy"] == ("head1_t1",)
    assert same["head1_t1"] == ("copy",)
    assert [entry.n_reference for entry in result.scored] == [3] * 5
    scores = {entry.name: entry.score for entry in result.scored}
    assert scores["copy"] == scores["head1_t1"]
    assert len(heard.notes) == 2


# -- series -----------------------------------------------------------------------------------


def test_series_are_scored_and_the_own_patients_other_scan_never_serves(score, tmp_path):
    for seed in range(4):
        scans.write_series(tmp_path / "in" / str(seed), seed)
    scans.write_series(tmp_path / "in" / "prior", 5, PatientID="P2", StudyDate="20250101")
    result, heard = score()
    assert sorted(entry.name for entry in result.scored) == [
        *("P0_3", "P1_3", "P2_3", "P2_3-2", "P3_3")
    ]
    assert [entry.n_reference for entry in result.scored] == [3] * 5
    assert len(heard.notes) == 2
    assert "P2_3 is not compared with P2_3-2, of the same patient" in "\n".join(heard.notes)
    made = nibabel.load(tmp_path / "out" / "maps" / "P1_3.nii.gz")
    assert made.shape == (32, 32, 16)  # columns, rows, slices
    first, last = (made.affine @ [0, 0, k, 1] for k in (0, 15))
    np.testing.assert_allclose(first[:2], [10, 20])  # LPS -10, -20
    assert {first[2], last[2]} == {30, 60}


def test_series_that_are_no_volume_or_of_another_protocol_are_left_out(score, tmp_path):
    for seed in range(4):
        scans.write_series(tmp_path / "in" / str(seed), seed)
    scans.write_series(tmp_path / "in" / "scout", 5, geometry=Geometry(n_slices=3))
    scans.write_series(tmp_path / "in" / "sag", 6, BodyPartExamined="KNEE")
    result, _ = score({"match": {"modality": "MR", "body_part": "HEAD"}})
    assert len(result.scored) == 4
    assert result.failed == ()
    reasons = dict(result.left_out)
    assert "3 slices" in reasons["P5_3"]
    assert "body_part is KNEE, not HEAD" in reasons["P6_3"]


def test_several_series_of_one_study_are_noted_as_hardly_meant(score, tmp_path):
    for seed in range(4):
        scans.write_series(tmp_path / "in" / str(seed), seed)
    more = {"StudyInstanceUID": "1.2.3.4", "PatientID": "P9"}
    for seed in (5, 6):
        scans.write_series(tmp_path / "in" / str(seed), seed, **more)
    _, heard = score()
    assert "in 1 of 5 studies there are several series" in heard.notes[0]
    assert "--images" in heard.notes[0]


def test_ct_and_mr_are_not_compared(score, tmp_path):
    for seed in range(4):
        scans.write_series(tmp_path / "in" / str(seed), seed, "CT" if seed else "MR")
    with pytest.raises(ConfigError, match="two runs"):
        score()


# -- methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("modality", "preset"), [("MR", "mr"), ("CT", "ct")])
def test_the_preset_follows_the_modality(score, tmp_path, modality, preset):
    """The tiny encoder's patches of 16 do not fit the grids of the presets: the message tells."""
    for seed in range(4):
        scans.write_series(tmp_path / "in" / str(seed), seed, modality)
    with pytest.raises(ConfigError, match=f"--preset {preset}: grid"):
        score(protocol_name=None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol_name": "t2"}, "'t2'"),
        ({"protocol_name": None, "preset": "best"}, "known: mr, ct, published"),
        ({"preset": "mr"}, "name one of them"),
    ],
)
def test_a_method_that_is_none_is_refused(score, tmp_path, options, said):
    scans.write_heads(tmp_path / "in", 4)
    with pytest.raises(ConfigError, match=said):
        score(**options)


def test_a_protocol_that_harmonises_learns_the_histogram_of_all_scans(score, tmp_path):
    """A scan of another contrast is brought to the others, and the tables say at what."""
    for seed in range(4):
        scans.write_scan(tmp_path / "in", f"head{seed}", lines.head(seed))
    scans.write_scan(tmp_path / "in", "bent", lines.head(7) ** 2.5)
    plain, _ = score()
    made, _ = score({"harmonise": True})
    assert made.failed == ()
    assert len(made.recipe.method.intensity.landmarks) == 11
    assert made.recipe.token_fingerprint != plain.recipe.token_fingerprint
    specification = json.loads((tmp_path / "out" / "scores.json").read_text())["specification"]
    assert specification["intensity"]["landmarks"] == list(made.recipe.method.intensity.landmarks)
    again, _ = score({"harmonise": True})
    assert again.recipe.token_fingerprint == made.recipe.token_fingerprint
    assert [entry.encode_s for entry in again.scored] == [0.0] * 5


def test_a_protocol_with_its_batchs_medoid_takes_no_odd_scan_as_the_template(
    score, tmp_path, monkeypatch
):
    """Registration has a stand-in here: scans of so few voxels cannot be registered."""
    seen = []

    def stay(_voxels, _affine, template, _kind):
        seen.append(template.digest())
        return Alignment(np.eye(4), 1.0, 1.0, 1.0)

    monkeypatch.setattr(placement, "align", stay)
    common = lines.head(1)
    for number in range(4):
        mixed = 0.8 * common + 0.2 * lines.head(10 + number)
        scans.write_scan(tmp_path / "in", f"head{number}", mixed)
    scans.write_scan(tmp_path / "in", "a-first", lines.head(5))
    made, heard = score({"template": "medoid", "alignment": "rigid"})
    assert (made.failed, len(made.scored)) == ((), 5)
    (said,) = [note for note in heard.notes if "is the template" in note]
    assert said.startswith("head")
    assert "of 5 scans" in said
    assert set(seen) == {made.recipe.placing.template.digest()}
    # the same scans are not looked through again; with one more they are
    again, heard = score({"template": "medoid", "alignment": "rigid"})
    assert again.recipe.token_fingerprint == made.recipe.token_fingerprint
    assert not [note for note in heard.notes if "is the template" in note]
    scans.write_scan(tmp_path / "in", "one-more", 0.8 * common + 0.2 * lines.head(20))
    more, heard = score({"template": "medoid", "alignment": "rigid"})
    assert len(more.scored) == 6
    assert [note for note in heard.notes if "is the template: of 6 scans" in note]


def test_where_no_scan_can_be_read_the_space_says_so(score, tmp_path):
    for number in range(4):
        scans.write_scan(tmp_path / "in", f"flat{number}", np.full((16, 32, 32), 3.0 + number))
    with pytest.raises(ConfigError, match="no scan could be read"):
        score({"harmonise": True})


def test_the_pipeline_offers_the_call_too():
    assert of_the_pipeline is score_batch


def test_the_volumes_of_a_series_are_compared_each_with_its_like(score, tmp_path):
    for seed in range(4):
        times = (10, 80, 90) if seed == 3 else (10, 80)
        for number, ds in enumerate(lines.echoes(seed, times)):
            folder = tmp_path / "in" / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            write(ds, folder / f"{number:03d}.dcm")
    result, heard = score()
    assert {entry.name: entry.n_reference for entry in result.scored} == {
        f"P{seed}_1_EchoTime-{time}": 3 for seed in range(4) for time in (10, 80)
    }
    assert [entry.same_patient for entry in result.scored] == [()] * 8
    ((name, why),) = result.failed
    assert name == "P3_1_EchoTime-90"
    assert "0 other patients have a volume EchoTime 90" in why
    assert len(heard.notes) == 1
