"""A reference batch from one node to another: the same scores there, and nobody's data."""

import hashlib
import json
import zipfile

import pytest
import torch
from safetensors.torch import load, save

from dicom_node import clock, reference_files
from dicom_node import reference_verbs as verbs
from dicom_node.anomaly.spec import ANALOGUE_SEARCH, ScoringSpec, SearchSpec
from dicom_node.errors import DecisionRefused, ExportInvalid, TokenSpaceMismatch
from dicom_node.jobs import Stage
from dicom_node.reference import ReferenceBatch
from dicom_node.reference_exchange import export_batch, import_batch
from dicom_node.reference_files import ReferenceFiles
from dicom_node.scoring import score_against
from dicom_node.store.reference_table import ADMITTED, EVICTED, EXCLUDED
from dicom_node.store.tables import job
from tests.make import ledgers
from tests.make.ledgers import NOON, after
from tests.make.subjects import subject

WHO = ("Ada", "looked at it")


class Node:
    """Ledger, files and batch of one node."""

    def __init__(self, folder, fingerprint="f", search=None, **changes):
        folder.mkdir()
        self.opened = ledgers.ledger(folder)
        self.database = self.opened.__enter__()
        self.files = ReferenceFiles(folder, fingerprint, search or SearchSpec())
        self.batch = ReferenceBatch(self.database, ledgers.protocol(**changes), fingerprint)

    def study(self, seed, name=None, patient=None, at=NOON):
        """Received, scored and admitted."""
        name = name or f"{seed * 7919 % 1000:03d}"  # in an order that is not that of coming
        self.files.save_subject(name, subject(seed))
        patient = patient or f"KEY-OF-PATIENT-{seed}"
        uid, scanner = f"1.2.840.99999.{seed}", f"SIEMENS Prisma #{seed % 2}"
        self.batch.add_candidate(name, uid, patient, at, scanner)
        self.batch.decide(name, 50.0, at=at)
        return name

    def frozen(self, at=NOON):
        return self.batch.snapshot("", "", at)

    def score(self, seed=0, spec=None):
        """The scores of a study that is not of the batch."""
        self.files.save_subject("study", subject(seed))
        members = self.batch.snapshot("study", "patient of study", NOON).subjects
        return score_against(self.files, "study", members, spec or ScoringSpec())

    def states(self):
        return {m.subject: m.state for m in verbs.list_members(self.batch)}


@pytest.fixture
def node(tmp_path):
    """Makes nodes, and closes their ledgers at the end."""
    made = []

    def make(folder, **settings):
        made.append(Node(tmp_path / folder, **settings))
        return made[-1]

    yield make
    for one in made:
        one.opened.__exit__(None, None, None)


@pytest.fixture
def here(node):
    """A node with a batch of five, the distances of which are kept."""
    here = node("here")
    for seed in range(1, 6):
        here.study(seed, at=after(seed * 40 * 86400))
    here.score()
    return here


@pytest.fixture
def exported(here, tmp_path):
    path = tmp_path / "batch.zip"
    export_batch(here.files, here.database, here.frozen().version, path)
    return path


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path, files, **zip_settings):
    """An archive of these files beside `path`."""
    other = path.with_name("other.zip")
    with zipfile.ZipFile(other, "w", **zip_settings) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return other


def with_digest(files, name, content):
    """The files with another content that its manifest agrees with."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    return files | {name: content, "manifest.json": json.dumps(manifest).encode()}


def snapshot_of(folder):
    return {p.relative_to(folder) for p in folder.rglob("*.safetensors")}


# -- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "spec"),
    [
        (SearchSpec(), ScoringSpec()),
        (SearchSpec(n_cells=1), ScoringSpec()),
        (SearchSpec(n_cells=1), ScoringSpec(calibration="none")),
        (ANALOGUE_SEARCH, ScoringSpec(calibration="analogue")),
    ],
    ids=["all", "near", "raw", "analogue"],
)
@pytest.mark.parametrize("followed", [False, True])
def test_a_study_has_the_same_scores_there_to_the_bit(
    node, tmp_path, monkeypatch, search, spec, followed
):
    if followed:  # as averages of large batches are
        monkeypatch.setattr(reference_files, "_FOLLOWED_FROM", 2)
    here = node("here", search=search)
    for seed in range(1, 6):
        here.study(seed)
    expected = here.score(spec=spec)
    path = tmp_path / "batch.zip"
    version = here.frozen().version
    export_batch(here.files, here.database, version, path)
    there = node("there", search=search)
    done = import_batch(there.files, there.batch, path, "Ben", after(60))
    assert there.states() == dict.fromkeys(done.subjects, ADMITTED)
    found = there.score(spec=spec)
    for one, other in zip(
        (found.raw, found.calibrated, *found.reference),
        (expected.raw, expected.calibrated, *expected.reference),
        strict=True,
    ):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
        assert bool(one.isfinite().any())


def test_distances_are_not_measured_again_where_the_search_is_the_same(node, exported, monkeypatch):
    there = node("there")
    done = import_batch(there.files, there.batch, exported, "Ben")
    monkeypatch.setattr(there.files, "load_tokens", lambda name: pytest.fail(f"read {name}"))
    for name in done.subjects:
        there.files.distances(name, [other for other in done.subjects if other != name])


def test_distances_of_another_search_are_left_out(node, exported):
    there = node("there", search=SearchSpec(n_cells=1))
    done = import_batch(there.files, there.batch, exported, "Ben")
    assert all(there.files.has_subject(name) for name in done.subjects)
    assert list(there.files.root.glob("distances/**/*.safetensors")) == []


def test_what_was_not_measured_yet_is_when_it_is_exported(node, tmp_path):
    here = node("here")
    for seed in range(1, 4):
        here.study(seed)
    path = tmp_path / "batch.zip"
    manifest = export_batch(here.files, here.database, here.frozen().version, path)
    assert len(manifest.files) == 3 + 6
    there = node("there")
    import_batch(there.files, there.batch, path, "Ben")


def test_the_imported_are_members_with_their_origin(here, node, exported):
    there = node("there")
    done = import_batch(there.files, there.batch, exported, "Ben", after(60))
    (event,) = verbs.history(there.batch)
    assert done.event == event
    assert (event.decision.actor, event.decision.verb) == ("import Ben", "import")
    assert event.decision.reason.startswith(f"batch {here.frozen().version} of 5 subjects, written")
    rows = verbs.list_members(there.batch)
    assert {m.decided_by for m in rows} == {"import Ben"}
    assert not any(m.pinned for m in rows)
    assert len({m.patient_key for m in rows}) == 5
    assert len({m.scanner for m in rows}) == 2
    assert all(m.added <= clock.stamp(after(60)) for m in rows)


def test_a_second_import_changes_nothing(node, exported):
    there = node("there")
    first = import_batch(there.files, there.batch, exported, "Ben")
    verbs.exclude(there.batch, first.subjects[0], *WHO)
    before, files = verbs.list_members(there.batch), snapshot_of(there.files.root)
    again = import_batch(there.files, there.batch, exported, "Ben")
    assert (again.subjects, again.event) == (first.subjects, None)
    assert verbs.list_members(there.batch) == before
    assert snapshot_of(there.files.root) == files


def test_an_import_is_undone_to_the_bit(node, exported):
    there = node("there", max_reference=8)
    for seed in range(20, 23):
        there.study(seed)
    before = verbs.list_members(there.batch)
    done = import_batch(there.files, there.batch, exported, "Ben")
    assert len(verbs.list_members(there.batch)) == 8
    undone = verbs.undo(there.batch, done.event.id, *WHO)
    assert verbs.list_members(there.batch) == before
    verbs.undo(there.batch, undone.id, *WHO)
    assert there.score().raw.isfinite().any()
    assert len(verbs.list_members(there.batch, (ADMITTED,))) == 8


def test_studies_that_waited_are_queued_by_an_import(node, exported):
    there = node("there")
    number = ledgers.enqueue(there.database, "1.2.9", Stage.SCORE, protocol="t1")
    with there.database.begin() as db:
        db.execute(job.update().values(state="waiting"))
    import_batch(there.files, there.batch, exported, "Ben")
    assert ledgers.states(there.database) == {number: "queued"}


# -- patients ------------------------------------------------------------------------------------


def test_nothing_of_patients_devices_or_series_is_in_the_file(here, exported):
    whole = exported.read_bytes()
    for entry in verbs.list_members(here.batch):
        for said in (entry.patient_key, entry.series_instance_uid, entry.scanner, entry.added):
            assert said.encode() not in whole
        assert f"{entry.subject}.safetensors".encode() not in whole
    assert b"SIEMENS" not in whole
    manifest = json.loads(contents(exported)["manifest.json"])
    assert {s["month"] for s in manifest["subjects"]} <= {
        "2026-02",
        "2026-03",
        "2026-05",
        "2026-06",
        "2026-07",
    }
    for name, content in contents(exported).items():
        if name.startswith("tokens/"):
            assert {key.split(".")[0] for key in load(content)} == {"values", "index", "grid_shape"}


def test_the_key_of_pseudonyms_is_the_node_s_alone(here, node, exported, tmp_path):
    key = here.files.root / "exchange.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_bytes() not in exported.read_bytes()
    other = node("other")
    for seed in range(1, 6):
        other.study(seed)
    path = tmp_path / "other.zip"
    export_batch(other.files, other.database, other.frozen().version, path)
    patients = [
        {s["patient"] for s in json.loads(contents(p)["manifest.json"])["subjects"]}
        for p in (exported, path)
    ]
    assert len(patients[0]) == len(patients[1]) == 5
    assert not patients[0] & patients[1]


def test_a_patient_of_two_exports_counts_once_with_the_newer_study(here, node, exported, tmp_path):
    there = node("there", max_reference=9)
    first = import_batch(there.files, there.batch, exported, "Ben")
    verbs.pin(there.batch, first.subjects[1], *WHO)
    pinned = [m for m in verbs.list_members(there.batch) if m.pinned]
    late = after(400 * 86400)
    for seed in (1, 2, 3, 4, 5):
        here.study(seed + 30, f"new {seed}", f"KEY-OF-PATIENT-{seed}", late)
    path = tmp_path / "later.zip"
    export_batch(here.files, here.database, here.frozen().version, path)
    import_batch(there.files, there.batch, path, "Ben", after(500 * 86400))
    admitted = verbs.list_members(there.batch, (ADMITTED,))
    assert len(admitted) == len({m.patient_key for m in admitted}) == 5
    assert [m.subject for m in admitted if m in pinned] == [first.subjects[1]]
    assert sorted(there.states().values()) == [ADMITTED] * 5 + [EVICTED] * 4 + [EXCLUDED]
    assert (
        sum(name in first.subjects for name, state in there.states().items() if state == ADMITTED)
        == 1
    )


def test_a_batch_that_comes_home_finds_its_patients(here, exported):
    before = here.states()
    done = import_batch(here.files, here.batch, exported, "Ada", after(300 * 86400))
    assert here.states() == before | dict.fromkeys(done.subjects, EXCLUDED)
    keys = {m.patient_key for m in verbs.list_members(here.batch)}
    assert len(keys) == 5


# -- what is refused -----------------------------------------------------------------------------


def test_a_batch_of_another_token_space_is_refused_and_both_are_named(
    node, here, exported, tmp_path
):
    there = node("there", fingerprint="g")
    with pytest.raises(TokenSpaceMismatch, match=r"batch.zip has fingerprint f, .* here has g:"):
        import_batch(there.files, there.batch, exported, "Ben")
    with pytest.raises(TokenSpaceMismatch, match=r"has fingerprint f, .* here has g:"):
        export_batch(there.files, here.database, here.frozen().version, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_a_batch_of_another_protocol_is_refused(node, exported):
    there = node("there", name="flair")
    with pytest.raises(
        DecisionRefused, match=r"of protocol 't1', not 'flair'.* \[\[protocol\]\] 't1'"
    ):
        import_batch(there.files, there.batch, exported, "Ben")


def test_a_batch_that_has_no_room_is_refused_and_leaves_nothing(node, exported):
    there = node("there")
    for seed in range(20, 22):
        there.study(seed)
    before, files = verbs.list_members(there.batch), snapshot_of(there.files.root)
    with pytest.raises(DecisionRefused, match="would hold 7 subjects, of at most 5: raise max_ref"):
        import_batch(there.files, there.batch, exported, "Ben")
    with pytest.raises(DecisionRefused, match="is no name of a person"):
        import_batch(there.files, there.batch, exported, "rule")
    assert verbs.list_members(there.batch) == before
    assert snapshot_of(there.files.root) == files


def test_a_batch_that_is_not_known_or_not_kept_is_not_exported(here, tmp_path):
    with pytest.raises(DecisionRefused, match="no reference batch is named 't1-x'"):
        export_batch(here.files, here.database, "t1-x", tmp_path / "x.zip")
    version, (first, *_) = here.frozen().version, here.frozen().subjects
    with pytest.raises(DecisionRefused, match=r"missing/x\.zip cannot be written: No such file"):
        export_batch(here.files, here.database, version, tmp_path / "missing" / "x.zip")
    here.files.token_file(first).unlink()
    with pytest.raises(DecisionRefused, match=f"subject {first} of batch {version} is no longer"):
        export_batch(here.files, here.database, version, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


TOKENS, PAIR = "tokens/0001.safetensors", "distances/0002/0001.safetensors"


def with_manifest(change):
    """Changes the manifest in place."""

    def damage(files):
        manifest = json.loads(files["manifest.json"])
        change(manifest)
        return files | {"manifest.json": json.dumps(manifest).encode()}

    return damage


def with_tensors(name, change):
    """Changes the tensors of a file in place, and its digest with them."""

    def damage(files):
        tensors = load(files[name])
        change(tensors)
        return with_digest(files, name, save(tensors))

    return damage


def without(inside):
    return lambda files: {name: content for name, content in files.items() if name != inside}


def with_subject(number, **changes):
    return with_manifest(lambda manifest: manifest["subjects"][number].update(changes))


def second_as_first(manifest):
    manifest["subjects"][1]["patient"] = manifest["subjects"][0]["patient"]


def without_scale(tensors):
    for key in [key for key in tensors if key.endswith("1")]:
        del tensors[key]


def places_beyond(tensors):
    return {f"analogue.{key}": torch.full_like(one, 1e6).int() for key, one in tensors.items()}


def set_first(key, value):
    return lambda tensors: tensors[key].view(-1)[:1].fill_(value)


#: what is wrong with the archive -> how it came so, and what is said of it
DAMAGES = {
    "content": (
        lambda files: files | {TOKENS: files[TOKENS][:-1] + b"!"},
        "tokens/0001.safetensors has another SHA-256",
    ),
    "left out": (without(PAIR), f"{PAIR} is missing, or no part"),
    "unknown": (lambda files: files | {"x": b"x"}, "x is missing, or no part of an export"),
    "above": (lambda files: files | {"../evil": b"x"}, "../evil is missing, or no part"),
    "absolute": (lambda files: files | {"/evil": b"x"}, "/evil is missing, or no part"),
    "no manifest": (without("manifest.json"), "it has no manifest.json"),
    "no json": (lambda files: files | {"manifest.json": b"{"}, "manifest.json: as a whole: "),
    "unknown key": (with_manifest(lambda m: m.update(more=1)), "manifest.json: more: Extra inputs"),
    "format": (with_manifest(lambda m: m.update(format=2)), "manifest.json: format: Input should"),
    "evil name": (with_subject(0, name="../1"), "manifest.json: subjects.0.name: "),
    "no month": (with_subject(1, month="2026-13"), "manifest.json: subjects.1.month: "),
    "evil path": (
        with_manifest(lambda m: m["files"].update({"../../evil": m["files"][PAIR]})),
        "the files are not those of its subjects",
    ),
    "patient twice": (with_manifest(second_as_first), "a patient is in it twice"),
    "name twice": (with_subject(1, name="0001"), "the subjects are not numbered"),
    "no tensors": (
        lambda files: with_digest(files, TOKENS, b"tokens"),
        "it holds no tokens and distances",
    ),
    "nan": (with_tensors(TOKENS, set_first("values.0", torch.nan)), "are not finite numbers in bf"),
    "outside": (with_tensors(TOKENS, set_first("index.1", 10**6)), "outside its grid"),
    "before": (with_tensors(TOKENS, set_first("index.1", -1)), "outside its grid"),
    "scale": (with_tensors(TOKENS, without_scale), "differ in their scales or layers"),
    "more": (with_tensors(TOKENS, lambda t: t.update(more=torch.ones(1))), "tensors are called"),
    "endless": (with_tensors(PAIR, set_first("0", torch.inf)), "distances are not finite"),
    "other": (
        with_tensors(PAIR, lambda t: t.update({"0": torch.ones(1, 1)})),
        "distances are not those of the tokens",
    ),
    "nowhere": (
        with_tensors(PAIR, lambda t: t.update(places_beyond(t))),
        "the nearest token is none of the other subject's",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_not_as_it_was_written_is_refused_and_leaves_nothing(
    node, exported, tmp_path, damage, said
):
    there = node("there")
    path = rewritten(exported, damage(contents(exported)))
    with pytest.raises(ExportInvalid) as caught:
        import_batch(there.files, there.batch, path, "Ben")
    assert str(caught.value).startswith(f"{path} cannot be imported: ")
    assert said in str(caught.value)
    assert verbs.list_members(there.batch) == []
    assert snapshot_of(there.files.root) == set()
    assert not list(tmp_path.rglob("evil"))


def test_what_is_no_archive_is_refused(node, exported, tmp_path):
    there = node("there")
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "half.zip").write_bytes(exported.read_bytes()[:-1000])
    packed = rewritten(exported, contents(exported), compression=zipfile.ZIP_DEFLATED)
    whole = bytearray(exported.read_bytes())
    whole[200] ^= 1  # of the first tokens: the checksum of the archive tells
    (tmp_path / "flipped.zip").write_bytes(whole)
    for path, said in [
        (tmp_path / "none.zip", "cannot be read as an exported batch: .*No such file"),
        (tmp_path, "cannot be read as an exported batch"),
        (tmp_path / "text.zip", "not a zip file"),
        (tmp_path / "half.zip", "not a zip file"),
        (packed, "is compressed, encrypted or too large"),
        (tmp_path / "flipped.zip", "is damaged: Bad CRC-32"),
    ]:
        with pytest.raises(ExportInvalid, match=said):
            import_batch(there.files, there.batch, path, "Ben")
    assert snapshot_of(there.files.root) == set()


def test_the_same_batch_is_the_same_file(here, exported, tmp_path):
    again = tmp_path / "again.zip"
    export_batch(here.files, here.database, here.frozen().version, again)
    assert again.read_bytes() == exported.read_bytes()
