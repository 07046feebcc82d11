r"""What an archive is asked for, and what it answers, as values: study and series level of C-FIND.

A peer may leave out keys that it does not know, and match by fewer than it was asked by (PS3.4
C.2.2.1.3). So what comes is held against the query once more. Where the answer has no value the
match stays, and says by which key it was not checked: to drop it would hide what is there.

Patterns have ``*`` and ``?`` (C.2.2.2.4). Here case does not matter; whether it does there is the
peer's to say.

References
----------
PS3.4 C.2.2.2 (matching), C.4.1.1.3 (the identifier), C.6.2.1 (keys of the Study Root model);
PS3.5 6.1 (character sets).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date

from pydicom.dataset import Dataset

from dicom_node import body_parts
from dicom_node.association.answers import codes_of, count_of, date_of, holds_any_text, text_of
from dicom_node.errors import ConfigError

#: of a query that its values cannot be written in without
_UTF_8 = "ISO_IR 192"
#: LO (PS3.5 6.2)
_LONGEST_TEXT = 64
#: looser than PS3.5 9.1, as in the inbox: archives hold what scanners made
_UID = re.compile(r"[0-9.]{1,64}")

#: a key and whether its value is as asked for; None: the peer gave no value
_Verdict = tuple[str, bool | None]


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One study that an archive knows. Empty, or None, is what the archive did not say."""

    study_instance_uid: str
    date: date | None = None
    description: str = ""
    #: Modalities in Study (0008,0061)
    modalities: tuple[str, ...] = ()
    n_series: int | None = None
    n_instances: int | None = None
    #: patient data: neither logged nor printed
    patient_id: str = field(default="", repr=False)
    accession_number: str = field(default="", repr=False)
    #: keywords of keys that were asked by and not answered: it may not be what was looked for
    unchecked: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from all others."""
        return (self.study_instance_uid,)


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """One series that an archive knows. Empty, or None, is what the archive did not say."""

    study_instance_uid: str
    series_instance_uid: str
    modality: str = ""
    description: str = ""
    #: Body Part Examined (0018,0015), as it stands there
    body_part: str = ""
    series_number: int | None = None
    n_instances: int | None = None
    #: as of a study
    unchecked: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from all others."""
        return (self.study_instance_uid, self.series_instance_uid)


@dataclass(frozen=True, slots=True)
class StudyQuery:
    """Which studies; what is left out matches any. Raises ConfigError on what no key can hold."""

    #: of Study Date, both included
    date_from: date | None = None
    date_to: date | None = None
    #: of one series at least: "MR"
    modality: str = ""
    #: of Study Description, a pattern
    description: str = ""
    #: a pattern too: that is how every archive reads it
    patient_id: str = field(default="", repr=False)
    accession_number: str = field(default="", repr=False)
    study_instance_uids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.date_from and self.date_to and self.date_from > self.date_to:
            raise ConfigError(f"no date lies from {self.date_from} to {self.date_to}")
        _check_texts(
            ("modality", self.modality),
            ("description", self.description),
            ("patient ID", self.patient_id),
            ("accession number", self.accession_number),
        )
        _check_uids(self.study_instance_uids)

    def identifier(self) -> Dataset:
        """Return the identifier of C-FIND at STUDY level; keys without a value are asked for."""
        ds = _identifier("STUDY", self.description, self.patient_id, self.accession_number)
        ds.StudyInstanceUID = list(self.study_instance_uids)
        ds.StudyDate = _range(self.date_from, self.date_to)
        ds.StudyDescription = self.description
        ds.ModalitiesInStudy = self.modality
        ds.PatientID = self.patient_id
        ds.AccessionNumber = self.accession_number
        ds.NumberOfStudyRelatedSeries = ds.NumberOfStudyRelatedInstances = None
        return ds

    def record_of(self, ds: Dataset) -> StudyRecord | None:
        """Return a match as a record; None for what is none, or has no Study Instance UID."""
        uid = text_of(ds, "StudyInstanceUID")
        if not _UID.fullmatch(uid):
            return None
        record = StudyRecord(
            study_instance_uid=uid,
            date=date_of(ds, "StudyDate"),
            description=text_of(ds, "StudyDescription"),
            modalities=codes_of(ds, "ModalitiesInStudy"),
            n_series=count_of(ds, "NumberOfStudyRelatedSeries"),
            n_instances=count_of(ds, "NumberOfStudyRelatedInstances"),
            patient_id=text_of(ds, "PatientID"),
            accession_number=text_of(ds, "AccessionNumber"),
        )
        unchecked = _unchecked(self._verdicts(record, any_text=holds_any_text(ds)))
        return None if unchecked is None else replace(record, unchecked=unchecked)

    def _verdicts(self, record: StudyRecord, *, any_text: bool) -> Iterator[_Verdict]:
        if self.study_instance_uids:
            yield "StudyInstanceUID", record.study_instance_uid in self.study_instance_uids
        if self.date_from or self.date_to:
            first, last = self.date_from or date.min, self.date_to or date.max
            yield "StudyDate", None if record.date is None else first <= record.date <= last
        if self.modality:
            of, wanted = record.modalities, self.modality.upper()
            yield "ModalitiesInStudy", wanted in of if of else None
        texts = (self.description, record.description)
        yield from _matched("StudyDescription", *texts, any_text=any_text)
        yield from _matched("PatientID", self.patient_id, record.patient_id, any_text=any_text)
        numbers = (self.accession_number, record.accession_number)
        yield from _matched("AccessionNumber", *numbers, any_text=any_text)


@dataclass(frozen=True, slots=True)
class SeriesQuery:
    """Which series of a study; what is left out matches any. Raises ConfigError as `StudyQuery`."""

    modality: str = ""
    #: of Series Description, a pattern
    description: str = ""
    #: of any name of the region: "BRAIN" is a "HEAD". Not asked by, since the archive tells them
    #: apart, but held against the answers
    body_part: str = ""
    #: instances, both included; no key is a range of numbers, so it too is checked here
    least_instances: int = 0
    most_instances: int | None = None
    series_instance_uids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_texts(("modality", self.modality), ("description", self.description))
        _check_uids(self.series_instance_uids)

    def identifier(self, study_instance_uid: str) -> Dataset:
        """Return the identifier of C-FIND at SERIES level, in one study (C.4.1.2.1)."""
        ds = _identifier("SERIES", self.description)
        ds.StudyInstanceUID = study_instance_uid
        ds.SeriesInstanceUID = list(self.series_instance_uids)
        ds.Modality = self.modality
        ds.SeriesDescription = self.description
        ds.BodyPartExamined = ""
        ds.SeriesNumber = ds.NumberOfSeriesRelatedInstances = None
        return ds

    def record_of(self, ds: Dataset, study_instance_uid: str) -> SeriesRecord | None:
        """Return a match as a record; None for what is none, or has no Series Instance UID."""
        uid = text_of(ds, "SeriesInstanceUID")
        if not _UID.fullmatch(uid):
            return None
        # the key of the level above should come back, and often does not
        if text_of(ds, "StudyInstanceUID") not in ("", study_instance_uid):
            return None
        record = SeriesRecord(
            study_instance_uid=study_instance_uid,
            series_instance_uid=uid,
            modality=text_of(ds, "Modality").upper(),
            description=text_of(ds, "SeriesDescription"),
            body_part=text_of(ds, "BodyPartExamined"),
            series_number=count_of(ds, "SeriesNumber"),
            n_instances=count_of(ds, "NumberOfSeriesRelatedInstances"),
        )
        unchecked = _unchecked(self._verdicts(record, any_text=holds_any_text(ds)))
        return None if unchecked is None else replace(record, unchecked=unchecked)

    def _verdicts(self, record: SeriesRecord, *, any_text: bool) -> Iterator[_Verdict]:
        if self.series_instance_uids:
            yield "SeriesInstanceUID", record.series_instance_uid in self.series_instance_uids
        if self.modality:
            asked, found = self.modality.upper(), record.modality
            yield "Modality", found == asked if found else None
        if self.body_part:
            asked_part, found_part = map(body_parts.normalised, (self.body_part, record.body_part))
            yield "BodyPartExamined", found_part == asked_part if found_part else None
        if self.least_instances > 0 or self.most_instances is not None:
            yield "NumberOfSeriesRelatedInstances", self._holds(record.n_instances)
        texts = (self.description, record.description)
        yield from _matched("SeriesDescription", *texts, any_text=any_text)

    def _holds(self, n_instances: int | None) -> bool | None:
        if n_instances is None:
            return None
        most = self.most_instances
        return self.least_instances <= n_instances and (most is None or n_instances <= most)


def _identifier(level: str, *texts: str) -> Dataset:
    """Return what every identifier begins with, in a character set that its texts can be in."""
    ds = Dataset()
    if not all(text.isascii() for text in texts):
        ds.SpecificCharacterSet = _UTF_8
    ds.QueryRetrieveLevel = level
    return ds


def _range(first: date | None, last: date | None) -> str:
    """Return a range of dates (PS3.4 C.2.2.2.5.1); empty for any."""
    if first is None and last is None:
        return ""
    if first == last and first is not None:
        return f"{first:%Y%m%d}"
    return f"{_day(first)}-{_day(last)}"


def _day(day: date | None) -> str:
    return "" if day is None else f"{day:%Y%m%d}"


def _unchecked(verdicts: Iterator[_Verdict]) -> tuple[str, ...] | None:
    """Return the keys without an answer, None when one says no."""
    found = list(verdicts)
    if any(verdict is False for _, verdict in found):
        return None
    return tuple(keyword for keyword, verdict in found if verdict is None)


def _matched(keyword: str, pattern: str, found: str, *, any_text: bool) -> Iterator[_Verdict]:
    """Hold a text against a pattern, where there is one.

    A peer may answer in a character set that lacks the pattern's letters, and drop them: such an
    answer says neither yes nor no.
    """
    if not pattern.strip("* "):
        return
    fits = _fits(pattern, found)
    unsure = not found or not (fits or any_text or pattern.isascii())
    yield keyword, None if unsure else fits


def _fits(pattern: str, found: str) -> bool:
    """Return whether all of a text is as the pattern says, whatever its case."""
    wild = re.escape(_composed(pattern).strip()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(wild, _composed(found), re.IGNORECASE) is not None


def _composed(text: str) -> str:
    """Return a text with one code point per letter and accent: senders differ."""
    return unicodedata.normalize("NFC", text)


def _check_texts(*values: tuple[str, str]) -> None:
    for name, value in values:
        if "\\" in value or len(value) > _LONGEST_TEXT or not all(map(str.isprintable, value)):
            raise ConfigError(
                f"the {name} that is looked for must be one line of at most {_LONGEST_TEXT} "
                "characters without a backslash"
            )


def _check_uids(uids: tuple[str, ...]) -> None:
    for uid in uids:
        if not _UID.fullmatch(uid):
            raise ConfigError(f"{uid!r} is no UID: digits and dots, at most 64 of them")
