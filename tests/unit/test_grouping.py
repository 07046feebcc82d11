"""Series that no rule claims: what they join, what they found, and what founds nothing."""

import tomllib
from dataclasses import replace

import pytest

from dicom_node import founding, grouping
from dicom_node.config import NodeConfig
from dicom_node.errors import (
    ConfigError,
    DecisionRefused,
    EmptyForeground,
    NoMatchingProtocol,
    NotScorable,
)
from dicom_node.grouping import Protocols, described, unfit
from dicom_node.jobs import JobState
from dicom_node.reference import ReferenceBatch
from dicom_node.reference_verbs import current_batch, forget, history, list_members, undo
from dicom_node.signature import signature
from dicom_node.store import (
    admission_table,
    discovered_table,
    job_table,
    outcomes,
    series_table,
)
from tests.make import ledgers, lines
from tests.make.instances import make_enhanced, make_instance
from tests.make.ledgers import NOON, after
from tests.make.signatures import chest_ct, head_t1
from tests.unit.test_worker import by_stage, work

SPACING_MM = (2.0, 1.0, 1.0)
NAME = "mr-head-t1-axial-2mm"
KNEES = [{"name": "knees", "match": {"modality": "MR", "body_part": "KNEE"}}]


@pytest.fixture
def make(database):
    """The protocols of a node with one ledger; arguments go into `[grouping]`."""

    def build(protocol=KNEES, **settings):
        config = NodeConfig.model_validate({"protocol": protocol, "grouping": settings})
        return Protocols(config, database)

    return build


def parsed(rule):
    """The one protocol of a text, as the configuration reads it."""
    (found,) = NodeConfig.model_validate(tomllib.loads(rule)).protocol
    return found


def claim(protocols, modality="MR", spacing_mm=SPACING_MM, **attributes):
    """The name of what claims a series of these attributes."""
    return protocols.claim(make_instance(modality, **attributes), spacing_mm).name


# -- what claims ---------------------------------------------------------------------------------


def test_an_unclaimed_series_founds_a_protocol_in_shadow_and_its_like_join_it(make):
    protocols = make()
    assert claim(protocols) == NAME
    assert claim(protocols, seed=2, RepetitionTime=540) == NAME
    (entry,) = protocols.discovered()
    assert (entry.protocol.name, entry.protocol.mode) == (NAME, "shadow")
    assert entry.founder == signature(make_instance("MR"), SPACING_MM)
    assert parsed(entry.rule) == entry.protocol
    assert [p.name for p in protocols.all()] == ["knees", NAME]


@pytest.mark.parametrize(
    "other",
    [
        {"EchoTime": 30},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
        {"SequenceVariant": "SK"},
        {"PixelSpacing": [0.4, 0.4]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_series_that_was_acquired_otherwise_founds_its_own(make, other):
    """Also where it differs in what no rule can ask for: the founder's signature is asked too."""
    protocols = make()
    claim(protocols)
    spacing_mm = (2.0, *map(float, other.get("PixelSpacing", SPACING_MM[1:])))
    assert claim(protocols, spacing_mm=spacing_mm, **other) == f"{NAME}-2"


def test_the_configuration_is_asked_first(make):
    assert claim(make()) == NAME
    later = make([{"name": "heads", "match": {"modality": "MR"}}])
    assert claim(later) == "heads"
    assert [entry.protocol.name for entry in later.discovered()] == [NAME]


def test_another_process_knows_at_once_what_was_founded(make):
    one, other = make(), make()
    assert other.discovered() == ()
    claim(one)
    assert claim(other) == NAME
    assert other.named(NAME) == one.named(NAME)
    assert len(other.discovered()) == 1


def test_two_that_found_one_group_at_once_found_it_once(make, monkeypatch):
    one, other = make(), make()
    real = grouping.joined
    looks = []

    def late(known, *arguments):
        """The other worker founds between the first look and the lock."""
        looks.append(len(known))
        if len(looks) == 1:
            found = real(known, *arguments)
            claim(other)
            return found
        return real(known, *arguments)

    monkeypatch.setattr(grouping, "joined", late)
    assert claim(one) == NAME
    assert len(one.discovered()) == 1


def test_of_several_that_fit_the_nearest_founder_has_the_series(make):
    protocols = make()
    assert claim(protocols, RepetitionTime=500) == NAME
    assert claim(protocols, RepetitionTime=640) == f"{NAME}-2"
    assert claim(protocols, RepetitionTime=540) == NAME
    assert claim(protocols, RepetitionTime=600) == f"{NAME}-2"


def test_a_name_is_no_configured_one_and_none_that_was_ever_used(make, database):
    named = [{"name": NAME, "match": {"modality": "CT"}}]
    assert claim(make(named)) == f"{NAME}-2"
    ledgers.complete_series(database, "1.2.9")
    with database.begin() as db:
        series_table.set_protocol(db, "1.2.9", f"{NAME}-3")
    assert claim(make(named), EchoTime=30) == f"{NAME}-4"


def test_an_adopted_one_is_the_configuration_s_from_then_on(make):
    protocols = make()
    claim(protocols)
    (entry,) = protocols.discovered()
    adopted = tomllib.loads(entry.rule)["protocol"]
    later = make([*KNEES, *adopted])
    assert later.discovered() == ()
    assert claim(later) == NAME
    assert later.named(NAME) == entry.protocol
    assert len(make().discovered()) == 1  # taken out again, it goes on as before


def test_an_unknown_name_is_a_fault_of_the_configuration(make):
    with pytest.raises(ConfigError, match=r"no .* named 'pet'"):
        make().named("pet")
    assert make().named("knees").match.body_part == "KNEE"


# -- what founds nothing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], "a localizer, by its ImageType"),
        (["DERIVED", "PRIMARY", "M"], "a derived image, by its ImageType DERIVED/PRIMARY"),
        (["ORIGINAL", "SECONDARY", "M"], "a derived image"),
        (["MIXED", "PRIMARY", "VOLUME"], "a derived image"),
    ],
)
def test_a_localizer_and_a_derived_image_found_nothing(make, kinds, said):
    protocols = make()
    with pytest.raises(NotScorable, match=said) as caught:
        claim(protocols, ImageType=kinds)
    assert "knees: body_part is HEAD, not KNEE" in str(caught.value)
    assert protocols.discovered() == ()
    assert claim(protocols, ImageType=kinds, BodyPartExamined="KNEE") == "knees"


def test_an_image_type_that_is_missing_speaks_against_nothing():
    assert unfit(make_instance("MR", ImageType=None)) is None
    assert unfit(make_enhanced("MR")) is None


def test_without_discovery_it_is_rejected_as_ever_and_known_groups_go_on(make):
    claim(make())
    off = make(discover=False)
    with pytest.raises(NoMatchingProtocol, match="body_part is HEAD, not KNEE"):
        claim(off, EchoTime=30)
    with pytest.raises(NoMatchingProtocol):
        claim(off, ImageType=["DERIVED", "PRIMARY", "M"])
    assert claim(off) == NAME


def test_beyond_the_limit_it_is_rejected_and_told_what_to_do(make):
    protocols = make(max_discovered=2)
    assert [claim(protocols, EchoTime=time) for time in (10, 20)] == [NAME, f"{NAME}-2"]
    with pytest.raises(NoMatchingProtocol) as caught:
        claim(protocols, EchoTime=40)
    for word in ("2 protocols are discovered", "max_discovered", "adopt or forget", "[[protocol]]"):
        assert word in str(caught.value)
    assert claim(protocols, EchoTime=20, seed=3) == f"{NAME}-2"
    with pytest.raises(NoMatchingProtocol, match="not KNEE"):
        claim(protocols, EchoTime=40)


def test_without_a_ledger_there_is_the_configuration_alone():
    protocols = Protocols(NodeConfig.model_validate({"protocol": KNEES}))
    assert protocols.discovered() == ()
    with pytest.raises(NoMatchingProtocol):
        claim(protocols)


def test_the_grid_of_what_is_founded_is_whole_tokens_of_the_node_s_encoder(database):
    config = NodeConfig.model_validate({"grouping": {"min_reference": 7}})
    Protocols(config, database, token_edge=16).claim(make_instance("MR"), SPACING_MM)
    (entry,) = Protocols(config, database).discovered()
    assert entry.protocol.extent_mm == (160.0, 192.0, 160.0)
    assert entry.protocol.min_reference == 7


def test_the_line_for_people_names_what_is_known():
    assert described(head_t1()) == (
        "MR HEAD, GR/IR/MP/SK/SP, ORIGINAL/M, sagittal, TE 2.4 ms, TR 1900 ms, TI 900 ms, 3 T, "
        "slices every 1 mm"
    )
    said = described(chest_ct(contrast_agent=True, body_part=None))
    assert said.startswith("CT of an unnamed region, ORIGINAL/AXIAL, kernel LUNG, contrast agent")


def test_no_patient_is_in_what_is_kept(make, database):
    claim(make(), SeriesDescription="DOE secret", PatientName="Doe^Jane", PatientID="PID-77")
    with database.read() as db:
        (row,) = discovered_table.rows(db)
    assert not [word for word in ("DOE", "Doe", "secret", "PID") if word in repr(row)]


# -- forgetting ----------------------------------------------------------------------------------


@pytest.fixture
def founded(make, database):
    """A discovered protocol with two members, in one token space; the second waits."""
    protocols = make()
    claim(protocols)
    batch = grouping_batch(protocols)
    for n, uid in enumerate(("1.2.1", "1.2.2")):
        ledgers.complete_series(database, uid)
        batch.add_candidate(f"s{n}", uid, f"KEY-{n}", after(n))
    with database.begin() as db:
        for uid in ("1.2.1", "1.2.2"):
            number = job_table.claim(db, "worker", 60.0, after(9)).id
            series_table.set_protocol(db, uid, NAME)
            job_table.set_protocol(db, uid, 1, NAME)
            assert job_table.let_go(db, number, "worker", JobState.WAITING, after(9))
    return protocols


def grouping_batch(protocols):
    return ReferenceBatch(protocols.database, protocols.named(NAME), "f")


def test_a_forgotten_one_claims_nothing_and_its_members_leave_by_decision(founded, database):
    done = forget(founded, NAME, "Ada", "a research sequence", NOON)
    assert (done.n_members, done.n_waiting) == (2, 2)
    assert founded.discovered() == ()
    batch = current_batch(database, founded.named(NAME))
    left = [(m.state, m.decided_by, m.reason) for m in list_members(batch)]
    assert left == [("excluded", "Ada", "a research sequence")] * 2
    (event,) = history(batch)
    assert (event.decision.verb, event.decision.actor) == ("forget", "Ada")
    with database.read() as db:
        found = {one.series_instance_uid: one for one in outcomes.outcomes(db)}
    assert {(one.protocol, one.outcome, one.fault) for one in found.values()} == {
        ("", "rejected", "NoMatchingProtocol")
    }
    assert "forgotten by Ada" in found["1.2.1"].reason
    assert "dicom-node retry" in found["1.2.1"].reason
    assert claim(founded) == f"{NAME}-2"


def test_forgetting_is_for_good_and_of_one_that_is_in_force(founded):
    forget(founded, NAME, "Ada", "why", NOON)
    with pytest.raises(DecisionRefused, match=f"named '{NAME}'; there are: none"):
        forget(founded, NAME, "Ada", "why", NOON)
    with pytest.raises(DecisionRefused, match="there are: none"):
        forget(founded, "knees", "Ada", "why", NOON)
    (event,) = history(grouping_batch(founded))
    with pytest.raises(DecisionRefused, match="does not come back"):
        undo(grouping_batch(founded), event.id, "Ada", "why")


@pytest.mark.parametrize(("by", "why"), [("rule", "x"), ("Ada", " ")])
def test_who_forgets_has_a_name_and_a_reason_or_nothing_changes(founded, by, why):
    with pytest.raises(DecisionRefused):
        forget(founded, NAME, by, why, NOON)
    assert len(founded.discovered()) == 1


def test_one_whose_studies_are_under_way_is_not_forgotten(founded, database):
    with database.begin() as db:
        job_table.release_waiting(db, NAME, NOON)
    with pytest.raises(DecisionRefused, match=r"2 studies of .* are under way"):
        forget(founded, NAME, "Ada", "why", NOON)
    assert len(founded.discovered()) == 1


def test_an_empty_one_is_forgotten_with_who_and_why(make, database):
    protocols = make()
    claim(protocols)
    assert forget(protocols, NAME, "Ada", "one odd scan", NOON).n_members == 0
    with database.read() as db:
        (event,) = admission_table.history(db, NAME, "")
    assert (event.decision.actor, event.decision.reason) == ("Ada", "one odd scan")


# -- the whole line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


def make_line(database, folder, weights, protocols=()):
    """A line whose only configured rule is for knees; `protocols` come before it."""
    knees = {"name": "knees", "match": {"modality": "MR", "body_part": "KNEE"}}
    # one size of token: a whole head's grid is encoded, of which little is foreground
    coarse = {"scales": [{"upsampling": 1, "slices_per_token": 4, "layers": [0]}]}
    made = lines.make_line(
        database, folder, weights, protocol=knees, grouping={"min_reference": 3}, encoder=coarse
    )
    if not protocols:
        return made
    config = made.config.model_copy(update={"protocol": (*protocols, *made.config.protocol)})
    return type(made)(config, database, folder / "cache")


def delivered(database):
    with database.read() as db:
        return db.exec_driver_sql("SELECT count(*) FROM delivery").scalar_one()


def test_five_unclaimed_series_are_scored_in_shadow_and_then_adopted_with_their_batch(
    database, tmp_path, weights
):
    line = make_line(database, tmp_path, weights)
    for seed in range(5):
        lines.receive_series(line, seed)
    work(line)
    assert by_stage(database) == {"tokenize done": 5, "score done": 5, "report done": 5}
    with database.read() as db:
        assert outcomes.counts(db) == {(NAME, "scored", ""): 5}
        assert discovered_table.tallies(db)[NAME].n_series == 5
    assert delivered(database) == 0
    (entry,) = line.protocols.discovered()
    adopted = parsed(entry.rule.replace('"shadow"', '"live"'))
    assert adopted == entry.protocol.model_copy(update={"mode": "live"})
    after_adoption = make_line(database, tmp_path, weights, (adopted,))
    fingerprint = line.token_fingerprint(entry.protocol)
    assert after_adoption.token_fingerprint(adopted) == fingerprint
    assert after_adoption.fingerprint(adopted) == line.fingerprint(entry.protocol)
    members = {m.subject for m in list_members(line.batch(entry.protocol))}
    uid = lines.receive_series(after_adoption, 5)
    work(after_adoption)
    with database.read() as db:
        assert outcomes.counts(db) == {(NAME, "scored", ""): 6}
        n = "SELECT n_reference, fingerprint FROM score WHERE series_instance_uid = ?"
        n_reference, scored_by = db.exec_driver_sql(n, (uid,)).one()
    assert n_reference >= 3
    assert scored_by == after_adoption.fingerprint(adopted)
    batch = after_adoption.batch(adopted)
    assert batch.fingerprint == fingerprint
    assert members < {m.subject for m in list_members(batch)}
    assert after_adoption.protocols.discovered() == ()


def test_cts_found_a_group_with_settings_of_a_ct_and_are_scored(database, tmp_path, weights):
    line = make_line(database, tmp_path, weights)
    how = {"BodyPartExamined": "ABDOMEN", "ConvolutionKernel": "SOFT"}
    # tokens of 32 mm: a cube of 128 mm
    large = replace(lines.GEOMETRY, pixel_spacing=(4.0, 4.0), slice_spacing=8.0)
    for seed in range(4):
        lines.receive_series(line, seed, modality="CT", geometry=large, **how)
    work(line)
    (entry,) = line.protocols.discovered()
    found = entry.protocol
    assert found.name.startswith("ct-abdomen")
    assert (found.intensity, found.window_hu) == ("hounsfield", (40.0, 400.0))
    assert (found.calibration, found.foreground) == ("analogue", "body")
    assert (found.extent_mm, found.match.kernel) == ((384.0,) * 3, "^SOFT$")
    with database.read() as db:
        assert outcomes.counts(db) == {(found.name, "scored", ""): 4}
    assert delivered(database) == 0


def test_what_waited_for_a_forgotten_one_is_handled_as_unclaimed_at_a_retry(
    database, tmp_path, weights
):
    line = make_line(database, tmp_path, weights)
    lines.receive_series(line, 1)
    work(line)
    assert by_stage(database) == {"tokenize done": 1, "score waiting": 1}
    forget(line.protocols, NAME, "Ada", "not wanted", NOON)
    work(line)
    with database.begin() as db:
        assert outcomes.counts(db) == {("", "rejected", "NoMatchingProtocol"): 1}
        assert job_table.retry_failed(db, NOON) == 1
    work(line)
    with database.read() as db:
        assert outcomes.counts(db) == {(f"{NAME}-2", "waiting", "InsufficientReference"): 1}
        assert job_table.n_waiting(db, f"{NAME}-2") == 1


def test_a_localizer_of_many_slices_is_rejected_by_name(database, tmp_path, weights):
    line = make_line(database, tmp_path, weights)
    lines.receive_series(line, 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    work(line)
    with database.read() as db:
        assert outcomes.counts(db) == {("", "rejected", "NotScorable"): 1}
    assert line.protocols.discovered() == ()


def test_a_series_in_which_there_is_no_body_founds_nothing(
    database, tmp_path, weights, monkeypatch
):
    line = make_line(database, tmp_path, weights)

    def empty(*_arguments):
        raise EmptyForeground("one value")

    monkeypatch.setattr(founding, "make_subject", empty)
    lines.receive_series(line, 1)
    work(line)
    with database.read() as db:
        assert outcomes.counts(db) == {("", "rejected", "EmptyForeground"): 1}
    assert line.protocols.discovered() == ()


def test_one_that_others_have_come_to_is_not_taken_back(founded):
    founded.withdraw(NAME, "1.2.1")
    assert len(founded.discovered()) == 1


def test_a_founder_of_other_words_for_one_signature_keeps_its_own_group(make):
    """Equal signatures, but the rule of the first asks for what the second does not say."""
    protocols = make()
    claim(protocols)
    assert claim(protocols, BodyPartExamined="BRAIN") == NAME
    missing = {"BodyPartExamined": None, "StudyDescription": "Head"}
    assert claim(protocols, **missing) == f"{NAME}-2"
    first, second = protocols.discovered()
    assert replace(first.founder, inferred=(), body_part_as_sent=None) == second.founder
    assert claim(protocols, seed=4) == NAME
