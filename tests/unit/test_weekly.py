"""What protocols in shadow mode would have sent in a week: page, table, duty and verb."""

import csv
import io
import os
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from dicom_node import cli, clock, weekly
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError
from dicom_node.findings import Finding
from dicom_node.jobs import JobState, Stage
from dicom_node.schedule import Duties
from dicom_node.store import reference_table, result_table, series_table
from dicom_node.store.reference_table import ADMITTED, Member
from dicom_node.weekly import Week
from tests.make import drifts, ledgers
from tests.make.ledgers import NOON

#: of NOON, a Friday
WEEK = Week(2026, 1)


def config(tmp_path, mode="shadow", min_reference=3):
    of = {"name": "t1", "mode": mode, "min_reference": min_reference, "match": {"modality": "MR"}}
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
    return NodeConfig.model_validate(
        {"node": {"data_dir": tmp_path}, "protocol": [of], "destination": [pacs]}
    )


def scored(database, uid, *, at=NOON, peaks=(), **changes):
    """A complete series with its score, findings of 2 ml each, a SEG and two captures."""
    ledgers.complete_series(database, uid, at)
    number = ledgers.record_score(database, ledgers.score(uid, scored=at, **changes))
    point = (0.0, 0.0, 0.0)
    found = [Finding(k, 2.0, p, p, point, point, 15.0) for k, p in enumerate(peaks, 1)]
    kinds = [*(["SEG"] if peaks else []), "SC", "SC"]
    made = [ledgers.result_object(k, number, kind=kind) for k, kind in enumerate(kinds)]
    with database.begin() as db:
        result_table.record_results(db, number, found, made, [], at)


def admit(database, *patients):
    with database.begin() as db:
        for patient in patients:
            entry = Member(f"s {patient}", "1.2", patient, ADMITTED, "", clock.stamp(NOON))
            reference_table.add(db, "t1", "f", entry)


def test_each_study_of_the_week_stands_there_with_what_would_have_been_sent(tmp_path, database):
    scored(database, "1.2.1", peaks=(8.5, 4.0), subject_score=7.25, percentile=93.0)
    scored(database, "1.2.2")
    scored(database, "1.2.3", at=WEEK.end)
    scored(database, "1.2.4", at=WEEK.start - timedelta(seconds=1))
    scored(database, "1.2.5", protocol="other", batch_version="other-batch")
    settings = config(tmp_path)
    (found,) = weekly.collect(settings, database, WEEK)
    assert [study.series_instance_uid for study in found.studies] == ["1.2.1", "1.2.2"]
    one, two = found.studies
    assert (one.n_findings, one.findings_ml, one.peak) == (2, 4.0, 8.5)
    assert (one.n_segmentations, one.n_captures) == (1, 2)
    assert (two.n_findings, two.findings_ml, two.peak) == (0, 0.0, None)
    first, second = csv.DictReader(io.StringIO(weekly.as_csv([found], settings)))
    assert (first["series_instance_uid"], first["destinations"]) == ("1.2.1", "pacs")
    assert float(first["subject_score"]) == 7.25
    assert second["peak"] == ""
    page = weekly.as_html([found], settings, WEEK)
    assert "1 SEG, 2 SC to each of pacs" in page
    assert "Research use only" in page
    assert "2026-W01" in page
    assert "http" not in page  # nothing is fetched from elsewhere


def test_series_without_a_result_are_counted_with_a_reason_that_cannot_break_the_page(
    tmp_path, database
):
    for number in range(3):
        uid = f"1.2.9.{number}"
        ledgers.complete_series(database, uid)
        with database.begin() as db:
            series_table.set_protocol(db, uid, "t1")
        end = {"protocol": "t1", "fault": "IrregularGeometry", "reason": "<b>gap</b>"}
        drifts.end(database, uid, Stage.TOKENIZE, JobState.REJECTED, **end)
    settings = config(tmp_path)
    (found,) = weekly.collect(settings, database, WEEK)
    (missing,) = found.missing
    assert (missing.outcome, missing.fault, missing.n) == ("rejected", "IrregularGeometry", 3)
    page = weekly.as_html([found], settings, WEEK)
    assert "&lt;b&gt;gap&lt;/b&gt;" in page


def test_it_says_what_is_missing_to_go_live(tmp_path, database):
    admit(database, "a", "b", "b2")
    (found,) = weekly.collect(config(tmp_path, min_reference=5), database, WEEK)
    assert (found.n_admitted, found.min_reference) == (3, 5)
    assert found.to_go_live.startswith("2 more usual studies of other patients are needed")
    (found,) = weekly.collect(config(tmp_path), database, WEEK)
    assert 'mode = "live"' in found.to_go_live


def test_a_protocol_that_is_live_has_no_digest(tmp_path, database):
    scored(database, "1.2.1")
    settings = config(tmp_path, mode="live")
    assert weekly.collect(settings, database, WEEK) == []
    assert weekly.due(settings, WEEK.end) is None


def test_the_duty_writes_a_week_once_when_it_is_over(tmp_path, database, monkeypatch, caplog):
    caplog.set_level("INFO")
    scored(database, "1.2.1")
    settings = config(tmp_path)
    duties = Duties(settings, database)
    early = weekly.write(settings, database, WEEK)  # as the verb does, before the week is over
    os.utime(early, (NOON.timestamp(), NOON.timestamp()))
    monkeypatch.setattr(clock, "now", lambda: WEEK.end + timedelta(hours=1))
    duties.digest()
    page = tmp_path / "digests" / "2026-W01.html"
    assert "1.2.1" in page.read_text("utf-8")
    assert "1.2.1" in page.with_suffix(".csv").read_text("utf-8")
    assert [str(page) in record.getMessage() for record in caplog.records] == [True]
    duties.digest()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("text", ["2026-48", "2026-W54", "W48", "2026-W00", "last"])
def test_what_is_no_week_is_refused_with_how_to_write_one(text):
    with pytest.raises(ConfigError, match="2026-W48"):
        Week.named(text)


def test_weeks_are_those_of_iso_8601():
    assert Week.of(datetime(2027, 1, 3, 23, 59, tzinfo=UTC)) == Week.named("2026-W53")
    assert WEEK.start == datetime(2025, 12, 29, tzinfo=UTC)
    assert Week.of(WEEK.start) == WEEK
    assert Week.of(WEEK.end) == Week(2026, 2)


def test_the_verb_writes_the_week_and_prints_it_as_csv(tmp_path, database):
    scored(database, "1.2.1", peaks=(5.0,))
    file = tmp_path / "config.toml"
    text = '[node]\ndata_dir = "."\n[[protocol]]\nname = "t1"\n[protocol.match]\nmodality = "MR"\n'
    file.write_text(text, "utf-8")
    call = ["digest", "--week", "2026-W01", "--config", str(file)]
    done = CliRunner().invoke(cli.app, call)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "digests" / "2026-W01.html").exists()
    printed = CliRunner().invoke(cli.app, [*call, "--csv"])
    (row,) = csv.DictReader(io.StringIO(printed.output))
    assert row["series_instance_uid"] == "1.2.1"
