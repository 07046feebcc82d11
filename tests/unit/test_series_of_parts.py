"""A series of several volumes on its way: each part is scored and superseded by itself."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from dicom_node import clock, pipeline, volume, worker
from dicom_node.invariants import check
from dicom_node.invariants.violation import Kind
from dicom_node.jobs import Stage
from dicom_node.result_objects import described
from dicom_node.splitting import parts_of
from dicom_node.status import collect_status
from dicom_node.store import (
    job_table,
    outcomes,
    part_table,
    reference_table,
    result_table,
    series_table,
    week,
)
from dicom_node.store.reference_table import ADMITTED, CANDIDATE
from dicom_node.store.tables import job
from dicom_node.worker import Worker
from tests.make import ledgers, lines
from tests.make.instances import write
from tests.make.iod import dciodvfy, faults
from tests.make.ledgers import after

PD_T2 = (
    {"name": "pd", "match": {"modality": "MR", "echo_time_ms": [5, 30]}},
    {"name": "t2", "match": {"modality": "MR", "echo_time_ms": [60, 100]}},
)
EVERYTHING = {"finding_min_volume_ml": 0.0, "finding_threshold": 0.5}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def make(tmp_path, weights):
    """A line with changes in its sections."""
    with ledgers.ledger(tmp_path) as database:
        yield lambda **sections: lines.make_line(
            database, tmp_path, weights, **({"several": PD_T2} | sections)
        )


def work(line):
    working = Worker(line, "one")
    while working.run_one():
        pass


def jobs(line, uid, revision=1):
    """(name of the part, stage) -> (state, reason)."""
    with line.database.read() as db:
        names = {one.key: one.name for one in part_table.parts(db, uid, revision)}
        rows = db.execute(
            job.select().where(job.c.series_instance_uid == uid, job.c.revision == revision)
        )
        return {(names.get(row.part, ""), row.stage): (row.state, row.reason) for row in rows}


def parts(line, uid, revision=1):
    with line.database.read() as db:
        return {one.name: one for one in part_table.parts(db, uid, revision)}


def results(line, uid, part, revision=1):
    with line.database.read() as db:
        number, _ = result_table.get_score(db, uid, revision, part)
        return result_table.results_of(db, number)


def read(line, items):
    return [pydicom.dcmread(line.folders.results / item.file_name) for item in items]


def sources(ds):
    """SOP Instance UIDs of the source series that an object refers to."""
    found = set()
    for element in ds.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            found.add(str(element.value))
    return found


# -- scored, each by itself ----------------------------------------------------------------------


def test_each_echo_is_scored_by_the_protocol_that_claims_it(make):
    line = make(
        protocol=EVERYTHING,
        results={"secondary_capture": True, "presentation_state": True, "parametric_map": True},
    )
    made = [lines.echoes(seed, (10, 80), planted=(80,) * (seed == 3)) for seed in range(4)]
    uids = [lines.receive(line, one) for one in made]
    work(line)
    last = uids[3]
    assert jobs(line, last)["", "tokenize"] == ("done", "2 volumes: EchoTime 10; EchoTime 80")
    assert ("", "score") not in jobs(line, last)
    known = parts(line, last)
    for name, protocol in (("EchoTime 10", "pd"), ("EchoTime 80", "t2")):
        assert jobs(line, last)[name, "report"][0] == "done"
        with line.database.read() as db:
            _, entry = result_table.get_score(db, last, 1, known[name].key)
        assert (entry.protocol, entry.n_reference) == (protocol, 3)
    own = [{str(ds.SOPInstanceUID) for ds in made[3] if ds.EchoTime == time} for time in (10, 80)]
    seen = set()
    for number, (name, mine, others) in enumerate(
        zip(("EchoTime 10", "EchoTime 80"), own, own[::-1], strict=True), 1
    ):
        items = results(line, last, known[name].key)
        assert {"SEG", "SR", "SC", "PR", "PM"} <= {item.kind for item in items}
        for ds in read(line, items):
            assert name in ds.SeriesDescription
            assert "research use only" in ds.SeriesDescription
            assert ds.SeriesNumber // 1000 == 9 + number
            assert not sources(ds) & others
            assert (ds.SOPClassUID.name.startswith("Secondary")) or sources(ds) & mine
            assert ds.SOPInstanceUID not in seen
            seen.add(ds.SOPInstanceUID)
        for item in items:
            # the tables of types do not know the branches of a report's content
            check = dciodvfy if item.kind == "SR" else faults
            assert check(line.folders.results / item.file_name) == []
    with line.database.read() as db:
        sent = {
            one.sop_instance_uid
            for one in result_table.due_deliveries(db, "pacs", clock.now(), 1000)
        }
    assert seen <= sent


def test_a_lesion_in_one_echo_is_found_in_that_echo(make):
    line = make()
    for seed in range(6):
        lines.receive(line, lines.echoes(seed, (10, 80), anatomy=50))
    uid = lines.receive(line, lines.echoes(6, (10, 80), planted=(80,), anatomy=50))
    work(line)
    inside = np.zeros((16, 32, 32), bool)
    inside[lines.CUBE] = True
    above = {}
    for name, part in parts(line, uid).items():
        with line.database.read() as db:
            _, entry = result_table.get_score(db, uid, 1, part.key)
        source = volume.build_series(line.series(uid, part.key)[0])
        found = pipeline.source_map(line, line.protocols.named(entry.protocol), entry, source)
        above[name] = float(found[inside].mean())
    assert above["EchoTime 80"] > 3 * above["EchoTime 10"], above


def test_a_part_that_no_protocol_claims_costs_the_other_nothing(make):
    line = make(several=PD_T2[1:], grouping={"discover": False})
    uids = [lines.receive(line, lines.echoes(seed, (10, 80))) for seed in range(4)]
    work(line)
    for uid in uids:
        state, reason = jobs(line, uid)["EchoTime 10", "tokenize"]
        assert state == "rejected"
        assert "echo_time_ms is 10, not 60 to 100" in reason
        assert jobs(line, uid)["EchoTime 80", "report"][0] == "done"
    with line.database.read() as db:
        found = [(one.part, one.outcome, one.fault, one.protocol) for one in outcomes.outcomes(db)]
        assert outcomes.counts(db) == {
            ("", "rejected", "NoMatchingProtocol"): 4,
            ("t2", "scored", ""): 4,
        }
        rows = result_table.worklist(db, 10)
        digest = week.scored_between(db, ["t2"], ledgers.NOON, clock.now().replace(year=2100))
    assert found[:2] == [
        ("EchoTime 10", "rejected", "NoMatchingProtocol", ""),
        ("EchoTime 80", "scored", "", "t2"),
    ]
    assert len(rows) == 8
    assert {(row.part_name, row.protocol, row.stage) for row in rows} == {
        ("EchoTime 10", None, "tokenize"),
        ("EchoTime 80", "t2", "report"),
    }
    assert [one.part for one in digest] == ["EchoTime 80"] * 4
    shown = collect_status(line.database)["unfinished"]
    assert {one["part"] for one in shown} == {"EchoTime 10"}


def test_each_b_value_founds_a_protocol_of_its_own(make):
    line = make(several=({"name": "ct", "match": {"modality": "CT"}},))
    made = lines.echoes(1, (10, 80))
    for ds in made:
        ds.DiffusionBValue, ds.EchoTime = 0.0 if ds.EchoTime == 10 else 1000.0, 90
    uid = lines.receive(line, made)
    work(line)
    rules = [one.protocol.match.b_value for one in line.protocols.discovered()]
    assert rules == [(0.0, 10.0), (900.0, 1100.0)]
    claimed = {name: jobs(line, uid)[name, "tokenize"][1] for name in parts(line, uid)}
    assert list(claimed) == ["DiffusionBValue 0", "DiffusionBValue 1000"]
    assert list(claimed.values()) == [one.protocol.name for one in line.protocols.discovered()]


def test_a_rule_takes_the_first_time_point_alone(make):
    first = {"name": "first", "match": {"modality": "MR", "temporal_position": [1, 1]}}
    line = make(several=(first,), grouping={"discover": False})
    made = lines.echoes(1, (1, 2))
    for ds in made:
        ds.TemporalPositionIdentifier, ds.EchoTime = ds.EchoTime, 10
    uid = lines.receive(line, made)
    work(line)
    assert jobs(line, uid)["TemporalPosition 1", "score"][0] == "waiting"
    assert jobs(line, uid)["TemporalPosition 2", "tokenize"][0] == "rejected"


def test_a_part_that_is_no_volume_is_rejected_alone(make):
    line = make()
    made = [ds for n, ds in enumerate(lines.echoes(1, (10, 80))) if n not in (20, 21, 22)]
    uid = lines.receive(line, made)
    work(line)
    state, reason = jobs(line, uid)["EchoTime 80", "tokenize"]
    assert state == "rejected"
    assert "slices are missing" in reason
    assert jobs(line, uid)["EchoTime 10", "score"][0] == "waiting"


def test_of_two_parts_in_one_protocol_one_at_most_is_in_the_batch(make):
    line = make(several=({},))
    for seed in range(5):
        lines.receive(line, lines.echoes(seed, (10, 80)), at=after(seed))
    work(line)
    where = "t1", line.token_fingerprint(line.config.protocol[0])
    with line.database.read() as db:
        members = reference_table.members(db, *where)
    admitted = [one.patient_key for one in members if one.state == ADMITTED]
    assert len(admitted) == len(set(admitted)) >= 3
    # none of them left for another revision
    assert "late instances" not in {one.reason for one in members}
    assert {one.part for one in members} == {
        one.key for one in parts(line, members[0].series_instance_uid).values()
    }


def test_too_many_volumes_are_rejected_with_what_to_do(make):
    line = make(scoring={"max_volumes": 2})
    uid = lines.receive(line, lines.echoes(1, (10, 40, 80)))
    work(line)
    assert parts(line, uid) == {}
    ((state, reason),) = jobs(line, uid).values()
    assert state == "rejected"
    assert "3 volumes: EchoTime 10; EchoTime 40; EchoTime 80; at most 2" in reason
    assert "scoring.max_volumes" in reason


def test_one_volume_is_no_part(make):
    line = make(several=({},))
    uid = lines.receive_series(line, 1)
    before = line.series(uid)
    work(line)
    assert parts(line, uid) == {}
    assert line.subjects(before[0]) == [before[1]]
    assert set(jobs(line, uid)) == {("", "tokenize"), ("", "score")}


# -- killed, retried, late -----------------------------------------------------------------------


def test_a_worker_killed_between_finding_the_parts_and_queueing_them_loses_none(make):
    line = make()
    uid = lines.receive(line, lines.echoes(1, (10, 80)))
    with line.database.begin() as db:
        taken = job_table.claim(db, "dead", 60.0, clock.now())
    pipeline.tokenize(line, uid, lambda _share: None, taken.part)
    assert len(parts(line, uid)) == 2
    with line.database.begin() as db:
        assert [one.outcome for one in outcomes.outcomes(db)] == ["under way"] * 2
        db.execute(job.update().values(lease_until=clock.stamp(ledgers.NOON)))
    work(line)
    assert jobs(line, uid)["", "tokenize"][0] == "done"
    assert {key for key in jobs(line, uid) if key[0]} == {
        (name, stage) for name in ("EchoTime 10", "EchoTime 80") for stage in ("tokenize", "score")
    }


def test_the_parts_are_queued_once_whoever_comes_second(make):
    line = make()
    uid = lines.receive(line, lines.echoes(1, (10, 80)))
    Worker(line, "one").run_one()
    with line.database.begin() as db:
        keys = part_table.keys(db, uid, 1)
        job_table.enqueue_parts(db, uid, 1, keys, clock.now())
        series_table.set_protocol(db, uid, "pd", keys[0])
    pipeline.tokenize(line, uid, lambda _share: None)
    assert len(jobs(line, uid)) == 3
    with line.database.read() as db:
        # what found the same parts again leaves them as they are
        assert part_table.get(db, uid, 1, keys[0])[1] == "pd"


def test_one_part_is_retried_without_the_other(make, monkeypatch):
    line = make()
    uid = lines.receive(line, lines.echoes(1, (10, 80)))
    real = pipeline.tokenize
    Worker(line, "one").run_one()
    bad = parts(line, uid)["EchoTime 80"].key

    def broken(on, of, progress, part):
        if part == bad:
            raise ZeroDivisionError("by nought")
        return real(on, of, progress, part)

    monkeypatch.setitem(worker._STAGES, Stage.TOKENIZE, broken)
    monkeypatch.setattr(Worker, "_retried", lambda *_: (worker.JobState.FAILED, 0.0))
    work(line)
    assert jobs(line, uid)["EchoTime 80", "tokenize"][0] == "failed"
    assert jobs(line, uid)["EchoTime 10", "score"][0] == "waiting"
    monkeypatch.setitem(worker._STAGES, Stage.TOKENIZE, real)
    with line.database.begin() as db:
        assert job_table.retry_failed(db, clock.now()) == 1
    work(line)
    assert jobs(line, uid)["EchoTime 80", "score"][0] == "waiting"


def test_late_instances_supersede_every_part(make):
    line = make(protocol=EVERYTHING)
    more = replace(lines.GEOMETRY, n_slices=lines.GEOMETRY.n_slices + 1)
    for seed in range(4):
        uid = lines.receive(line, lines.echoes(seed, (10, 80)))
    work(line)
    before = {name: results(line, uid, one.key) for name, one in parts(line, uid).items()}
    late = lines.echoes(3, (10, 80), geometry=more)[-1]
    lines.receive(line, [late], at=after(9))
    work(line)
    with line.database.read() as db:
        states = {
            row.sop_instance_uid: row.state for row in db.execute(result_table.delivery.select())
        }
        members = [
            one
            for protocol in line.config.protocol
            for one in reference_table.members(
                db, protocol.name, line.token_fingerprint(protocol), (ADMITTED, CANDIDATE)
            )
            if one.series_instance_uid == uid
        ]
    for name, one in parts(line, uid, 2).items():
        new = results(line, uid, one.key, 2)
        assert {states[item.sop_instance_uid] for item in before[name]} == {"superseded"}
        assert {states[item.sop_instance_uid] for item in new} == {"queued"}
        _, report = read(line, new)
        (study,) = report.PredecessorDocumentsSequence
        (item,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert item.ReferencedSOPInstanceUID == before[name][1].sop_instance_uid
    present = line.subjects(line.series(uid)[0])
    assert {one.subject for one in members} <= set(present)


def test_a_second_echo_that_comes_late_makes_parts_of_what_was_one_volume(make):
    line = make(several=({},), protocol=EVERYTHING)
    for seed in range(4):
        uid = lines.receive(line, lines.echoes(seed, (10,)))
    work(line)
    before = results(line, uid, "")
    assert before
    lines.receive(line, [ds for ds in lines.echoes(3, (10, 80)) if ds.EchoTime == 80], at=after(9))
    work(line)
    found = parts(line, uid, 2)
    assert list(found) == ["EchoTime 10", "EchoTime 80"]
    with line.database.read() as db:
        rows = [
            (row.sop_instance_uid, row.state) for row in db.execute(result_table.delivery.select())
        ]
    states = dict(rows)
    assert {states[item.sop_instance_uid] for item in before} == {"superseded"}
    new = [results(line, uid, one.key, 2) for one in found.values()]
    assert all(new)
    assert {states[item.sop_instance_uid] for items in new for item in items} == {"queued"}


# -- how they are called -------------------------------------------------------------------------


def test_a_long_name_leaves_room_for_the_warning():
    for name in ("", "EchoTime 80", "ImageType " + "/".join("MPRX" for _ in range(20))):
        for what in ("SEG", "key objects"):
            text = described(what, name)
            assert len(text) <= 64
            assert text.endswith(" (research use only)")
            assert name[:5] in text


def test_no_free_text_of_a_header_is_in_a_name(tmp_path):
    made = lines.echoes(1, (10, 80))
    for n, ds in enumerate(made):
        ds.ContrastBolusAgent = ("", "for Mrs Miller")[n // 16]
        ds.ImageType = ["ORIGINAL", "PRIMARY", ("M", "P")[n // 16]]
        ds.EchoTime = 10
    found = parts_of([write(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate(made)])
    assert [part.name for part in found] == ["ImageType M", "ImageType P"]
    for ds in made:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    found = parts_of([write(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate(made)])
    assert sorted(part.name for part in found) == ["ContrastBolusAgent 1", "ContrastBolusAgent 2"]


def test_rows_of_a_series_without_parts_are_as_before(make):
    line = make(several=({},))
    uid = lines.receive_series(line, 1)
    with line.database.read() as db:
        row = result_table.series_row(db, uid)
        assert (row.part, row.part_name) == ("", "")
        assert result_table.series_row(db, uid, "other") is None


def test_the_invariants_hold_for_parts_too(make, monkeypatch):
    monkeypatch.setattr(check, "_PAUSE_S", 0.0)
    line = make()
    last = [lines.receive(line, lines.echoes(seed, (10, 80))) for seed in range(4)][-1]
    work(line)

    def violations():
        return [one.kind for one in check.verify(line.config, line.database).violations]

    assert violations() == []
    key = parts(line, last)["EchoTime 80"].key
    with line.database.begin() as db:
        db.execute(job.delete().where(job.c.series_instance_uid == last, job.c.part == key))
    assert violations() == [Kind.JOB_MISSING]
