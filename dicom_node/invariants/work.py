"""Every job is in a legal state, with what that state needs, and no series is forgotten."""

from __future__ import annotations

from collections.abc import Iterator

from dicom_node.config import digest
from dicom_node.invariants.violation import Kind, Seen, Violation
from dicom_node.jobs import JobState, Stage
from dicom_node.series import subject_name
from dicom_node.store.inspection import Entry
from dicom_node.store.series_table import COMPLETE

_STATES = {state.value for state in JobState}
_STAGES = {stage.value: stage for stage in Stage}
#: a running job that late instances superseded ends by itself: its row keeps the worker's name
_MAY_HAVE_WORKER = (JobState.RUNNING.value, JobState.SUPERSEDED.value)
_WITH_REASON = (JobState.REJECTED.value, JobState.FAILED.value)
#: series, revision, part, stage
_Key = tuple[str, int, str, str]


def check(seen: Seen) -> Iterator[Violation]:
    """Yield what is wrong with jobs, and which are missing."""
    series = {row.series_instance_uid: row for row in seen.rows.series}
    jobs = {_key(row, row.stage): row for row in seen.rows.jobs}
    for row in seen.rows.jobs:
        for text in _illegal(row, series.get(row.series_instance_uid), jobs):
            yield Violation(Kind.JOB_ILLEGAL, _name(row), text)
    for uid, row in series.items():
        first = next(iter(Stage)).value
        if row.state == COMPLETE and (uid, row.revision, "", first) not in jobs:
            text = f"the series is complete in revision {row.revision} and no job is queued"
            yield Violation(Kind.JOB_MISSING, uid, text)
    yield from _not_followed(seen, jobs)
    yield from _products(seen, series)


def _name(row: Entry) -> str:
    part = f" part {row.part}" if row.part else ""
    return f"{row.stage} of series {row.series_instance_uid} revision {row.revision}{part}"


def _key(row: Entry, stage: str) -> _Key:
    """Return the key of a job of the same volume."""
    return row.series_instance_uid, row.revision, row.part, stage


def _illegal(row: Entry, series: Entry | None, jobs: dict[_Key, Entry]) -> Iterator[str]:
    """Yield what a job's row lacks or has too much."""
    if row.state not in _STATES or row.stage not in _STAGES:
        yield f"state {row.state!r} of stage {row.stage!r} is none of the node's"
        return
    if series is None or row.revision > series.revision:
        yield "the series is not known in this revision"
    yield from _illegal_hold(row)
    if row.state in _WITH_REASON and not row.reason:
        yield f"{row.state} without a reason"
    if row.state == JobState.WAITING.value and not row.protocol:
        yield "waits for a batch, and names no protocol"
    before = _before(_STAGES[row.stage])
    if before is not None:
        earlier = jobs.get(_key(row, before.value))
        if earlier is None or earlier.state != JobState.DONE.value:
            yield f"{before.value} before it is {earlier.state if earlier else 'not there'}"


def _illegal_hold(row: Entry) -> Iterator[str]:
    """Yield what is wrong with who holds a job, and for how long."""
    if row.state == JobState.RUNNING.value and not (row.worker and row.lease_until):
        yield "runs without a worker or without a lease: nobody would take it up again"
    if row.state not in _MAY_HAVE_WORKER and row.worker:
        yield f"is {row.state}, and held by worker {row.worker}"


def _before(stage: Stage) -> Stage | None:
    return next((one for one in Stage if one.following is stage), None)


def _not_followed(seen: Seen, jobs: dict[_Key, Entry]) -> Iterator[Violation]:
    """Yield the jobs that are done and whose next stage was never queued."""
    parted = _parted(seen)
    for whole, parts in parted.items():
        done = whole in jobs and jobs[whole].state == JobState.DONE.value
        for key in parts if done else ():
            if (*whole[:2], key, whole[3]) not in jobs:
                text = f"it is done, and its part {key} is not queued"
                yield Violation(Kind.JOB_MISSING, _name(jobs[whole]), text)
    for row in seen.rows.jobs:
        stage = _STAGES.get(row.stage)
        following = stage.following if stage else None
        if row.state != JobState.DONE.value or following is None:
            continue
        if _key(row, row.stage) in parted:
            continue
        if _key(row, following.value) not in jobs:
            text = f"it is done, and {following.value} after it is not queued"
            yield Violation(Kind.JOB_MISSING, _name(row), text)


# --- what done jobs have made -------------------------------------------------------------------


def _products(seen: Seen, series: dict[str, Entry]) -> Iterator[Violation]:
    """Yield the done jobs whose product is not on disk, or has no row."""
    scores = {(row.series_instance_uid, row.revision, row.part): row for row in seen.rows.scores}
    parted = _parted(seen)
    spaces = {row.version: row.fingerprint for row in seen.rows.batches}
    contents = _contents(seen)
    for row in seen.rows.jobs:
        # what was parted made nothing itself
        if row.state != JobState.DONE.value or _key(row, row.stage) in parted:
            continue
        score = scores.get((row.series_instance_uid, row.revision, row.part))
        if score is not None:
            text = _lost_of_score(seen, row.stage, score, spaces.get(score.batch_version, ""))
        elif row.stage != Stage.TOKENIZE.value:
            text = "it is done, and the ledger has no score of this revision"
        else:
            of = series.get(row.series_instance_uid)
            text = _lost_tokens(seen, row, of, contents)
        if text:
            yield Violation(Kind.PRODUCT_LOST, _name(row), text)


def _lost_of_score(seen: Seen, stage: str, score: Entry, space: str) -> str:
    """Return which product of a scored revision is missing, empty where none is."""
    folder = digest(score.subject, score.fingerprint, score.batch_version)
    results = seen.folders.results / folder
    paths = {
        Stage.TOKENIZE.value: seen.token_file(space, score.subject),
        Stage.SCORE.value: results / "tokens.safetensors",
        Stage.REPORT.value: results / "summary.png",
    }
    path = paths.get(stage)
    if path is None or path.is_file():
        return ""
    return f"{path.relative_to(seen.folders.root)} is not there"


def _lost_tokens(
    seen: Seen, row: Entry, of: Entry | None, contents: dict[str, list[tuple[str, str]]]
) -> str:
    """Return what a tokenized revision lacks that has no score yet, empty where nothing.

    Of an earlier revision nobody can say which content it was of.
    """
    if of is None or of.revision != row.revision or of.state != COMPLETE:
        return ""
    uid = row.series_instance_uid
    subject = subject_name(uid, contents.get(uid, []), row.part)
    if any((seen.folders.root / "tokens").glob(f"*/{subject}.safetensors")):
        return ""
    return f"tokens of subject {subject} are not there"


def _parted(seen: Seen) -> dict[_Key, list[str]]:
    """Return the first jobs of series that hold several volumes, and the keys of these."""
    found: dict[_Key, list[str]] = {}
    for row in seen.rows.parts:
        of = (row.series_instance_uid, row.revision, "", next(iter(Stage)).value)
        found.setdefault(of, []).append(row.key)
    return found


def _contents(seen: Seen) -> dict[str, list[tuple[str, str]]]:
    """Return per series what names its content, as `series_table.instances_digest_source`."""
    found: dict[str, list[tuple[str, str]]] = {}
    # in the order of their SOP Instance UIDs: it is the table's key
    for row in seen.rows.instances:
        found.setdefault(row.series_instance_uid, []).append((row.sop_instance_uid, row.sha256))
    return found
