"""The tables of the ledger, as this version of the code wants them.

The migrations make them; a test holds the two together. What is true of all tables:

- Moments are ISO 8601 texts in UTC of one length (:func:`dicom_node.clock.stamp`): they sort as the
  moments do, and a person can read them.
- States are the values of the enumerations in :mod:`dicom_node.jobs` and of the constants beside
  each ``*_table`` module. SQLite checks no enumeration; the functions there do.
- UIDs are kept as they came, as text and never as a part of a path. There is no patient data:
  a patient is a digest (:func:`dicom_node.protocol.patient_key`).
- What is recorded is not deleted: a row is the answer to "what became of it?".
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
)

# by rule, so that a migration can name the constraint that it drops: SQLite names none
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: one row per association that was accepted; open while ``closed`` is null
association = Table(
    "association",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("calling_ae_title", String, nullable=False),
    Column("peer_host", String, nullable=False),
    Column("opened", String, nullable=False),
    Column("closed", String, index=True),
)

#: what was refused on the wire, so that `status` can show it
refusal = Table(
    "refusal",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("calling_ae_title", String, nullable=False),
    Column("peer_host", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("happened", String, nullable=False),
)

#: a series and how far its receiving is: "receiving" or "complete"
series = Table(
    "series",
    metadata,
    Column("series_instance_uid", String, primary_key=True),
    Column("study_instance_uid", String, nullable=False, index=True),
    Column("modality", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("state", String, nullable=False, index=True),
    # null until the first stage has read the series and matched it
    Column("protocol", String),
    Column("n_instances", Integer, nullable=False),
    Column("first_received", String, nullable=False),
    Column("last_received", String, nullable=False),
    # when a sender asked for storage commitment of every instance that had come; null: it did not,
    # or more came since
    Column("asked", String),
)

#: one row per SOP Instance UID: the first content stays, whatever is sent later
instance = Table(
    "instance",
    metadata,
    Column("sop_instance_uid", String, primary_key=True),
    Column(
        "series_instance_uid", ForeignKey("series.series_instance_uid"), nullable=False, index=True
    ),
    Column("sop_class_uid", String, nullable=False),
    Column("transfer_syntax_uid", String, nullable=False),
    Column("file_name", String, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("sha256", String, nullable=False),
    Column("calling_ae_title", String, nullable=False),
    Column("received", String, nullable=False),
    #: where its slice lies, and how many images its sender says there are; null: it does not say
    Column("along_mm", Float),
    Column("plane", String),
    Column("n_expected", Integer),
)

#: which associations carried a series: it is not complete while one of them is open
carried = Table(
    "carried",
    metadata,
    Column("association_id", ForeignKey("association.id"), primary_key=True),
    Column("series_instance_uid", String, primary_key=True, index=True),
)

#: the volumes of a series that holds several, per revision; a series that is one volume has none,
#: and in all other tables the empty ``part``
part = Table(
    "part",
    metadata,
    Column("series_instance_uid", String, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("key", String, primary_key=True),
    # from 1, in the order of what tells them apart
    Column("number", Integer, nullable=False),
    Column("name", String, nullable=False),
    # SOP Instance UIDs; numbers of frames, empty: all of the instance
    Column("instances", JSON, nullable=False),
    Column("frames", JSON, nullable=False),
    # null until its first stage has matched it
    Column("protocol", String),
)

#: the queue: who claims one, and for how long, stands in its row
job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("series_instance_uid", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("part", String, nullable=False, server_default=""),
    Column("stage", String, nullable=False),
    Column("state", String, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("protocol", String),
    Column("attempts", Integer, nullable=False),
    Column("not_before", String, nullable=False),
    Column("worker", String),
    Column("lease_until", String),
    Column("reason", String),
    # class of the error that the last attempt ended with, for counting; null: none, or not known
    Column("fault", String),
    Column("created", String, nullable=False),
    Column("updated", String, nullable=False),
    UniqueConstraint("series_instance_uid", "revision", "part", "stage"),
    Index(None, "state", "priority", "id"),
)

#: what was decided of a reference batch, append-only (triggers refuse anything else): who, why, and
#: each member's row before and after, so that it can be undone
admission = Table(
    "admission",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", String, nullable=False),
    Column("protocol", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    # "rule", or the name of a person
    Column("actor", String, nullable=False),
    Column("verb", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("undoes", ForeignKey("admission.id")),
    Column("changes", JSON, nullable=False),
    Index(None, "protocol", "fingerprint", "id"),
)

#: who is known to a protocol's reference, per token space (fingerprint)
member = Table(
    "member",
    metadata,
    Column("protocol", String, primary_key=True),
    Column("fingerprint", String, primary_key=True),
    Column("subject", String, primary_key=True),
    Column("series_instance_uid", String, nullable=False),
    Column("patient_key", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("added", String, nullable=False),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    # make, model and a digest of the device's serial number; empty: not known
    Column("scanner", String, nullable=False, server_default=""),
    # Software Versions as sent; empty: not known
    Column("software", String, nullable=False, server_default=""),
    # of its score when it was judged; null: not judged by a score
    Column("percentile", Float),
    Column("decided_by", String, nullable=False, server_default="rule"),
    # which volume of its series; empty: the only one
    Column("part", String, nullable=False, server_default=""),
    # the decision that left the row as it is; null: none yet
    Column("decided_in", ForeignKey("admission.id")),
)

#: protocols that unclaimed series founded; n series and the last of them are counted from `series`
discovered = Table(
    "discovered",
    metadata,
    Column("name", String, primary_key=True),
    # a [[protocol]] as it would stand in the configuration
    Column("rule", String, nullable=False),
    # of the series that founded it
    Column("signature", JSON, nullable=False),
    Column("founded", String, nullable=False),
    # null: in force
    Column("forgotten", String),
)

#: the batches that scores were made with; the version is the digest of the rest
batch = Table(
    "batch",
    metadata,
    Column("version", String, primary_key=True),
    Column("protocol", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    Column("subjects", JSON, nullable=False),
    Column("frozen", String, nullable=False),
)

#: one score per revision of a series, or of each of its parts, under the fingerprint and the batch
#: that made it
score = Table(
    "score",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("series_instance_uid", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("part", String, nullable=False, server_default=""),
    Column("subject", String, nullable=False),
    Column("protocol", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    Column("batch_version", ForeignKey("batch.version"), nullable=False),
    Column("n_reference", Integer, nullable=False),
    Column("subject_score", Float, nullable=False),
    Column("percentile", Float, nullable=False),
    # median over the tokens of the distance to the batch, not calibrated; null: made before 0003
    Column("raw_distance", Float),
    # of its findings, calibrated units; null: the protocol's, as it was before 0006
    Column("finding_threshold", Float),
    Column("scored", String, nullable=False),
    UniqueConstraint("series_instance_uid", "revision", "part"),
    Index(None, "protocol", "scored"),
)

#: what the drift watch says; a row is open while it is so, and what comes back is another row
warning = Table(
    "warning",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("protocol", String, nullable=False),
    Column("kind", String, nullable=False),
    # empty: of all scanners
    Column("scanner", String, nullable=False),
    Column("software", String, nullable=False),
    Column("text", String, nullable=False),
    Column("first_seen", String, nullable=False),
    Column("last_seen", String, nullable=False),
    # looks that found it so
    Column("n_looks", Integer, nullable=False),
    Column("closed", String),
)
#: one open row of a kind, whoever looks
Index(
    "ix_warning_open",
    warning.c.protocol,
    warning.c.kind,
    warning.c.scanner,
    warning.c.software,
    unique=True,
    sqlite_where=warning.c.closed.is_(None),
)

#: looks for a space of a protocol's own batch, and what came of them
space = Table(
    "space",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("protocol", String, nullable=False),
    # digest of the settings under which it was learnt
    Column("settings", String, nullable=False),
    Column("state", String, nullable=False),
    # "rule", or the name of a person
    Column("actor", String, nullable=False),
    Column("reason", String, nullable=False),
    # patients that were admitted at the look
    Column("n_members", Integer, nullable=False),
    Column("asked", String, nullable=False),
    # since when it serves, or when it ended otherwise; empty: it is under way
    Column("since", String, nullable=False, server_default=""),
    # of its file, its tokens, its template's subject, and whom it was learnt of; empty: not yet
    Column("digest", String, nullable=False, server_default=""),
    Column("fingerprint", String, nullable=False, server_default=""),
    Column("template", String, nullable=False, server_default=""),
    Column("subjects", JSON),
)
#: under the same settings one space serves and one is under way, whoever asks
for _name, _states in (("serving", ("serving",)), ("under_way", ("wanted", "building"))):
    Index(
        f"ix_space_{_name}",
        space.c.protocol,
        space.c.settings,
        unique=True,
        sqlite_where=space.c.state.in_(_states),
    )

#: what became of the members while their batch is rebuilt in a space
moved = Table(
    "moved",
    metadata,
    Column("space_id", ForeignKey("space.id"), primary_key=True),
    Column("subject", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("attempts", Integer, nullable=False),
)

finding = Table(
    "finding",
    metadata,
    Column("score_id", ForeignKey("score.id"), primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("volume_ml", Float, nullable=False),
    Column("max_score", Float, nullable=False),
    Column("mean_score", Float, nullable=False),
    Column("diameter_mm", Float, nullable=False),
    Column("centroid_mm", JSON, nullable=False),
    Column("peak_mm", JSON, nullable=False),
)

result = Table(
    "result",
    metadata,
    Column("sop_instance_uid", String, primary_key=True),
    Column("score_id", ForeignKey("score.id"), nullable=False, index=True),
    Column("kind", String, nullable=False),
    Column("series_instance_uid", String, nullable=False),
    Column("file_name", String, nullable=False),
)

#: what destinations were asked to commit to; kept, for a report may come late
commitment = Table(
    "commitment",
    metadata,
    Column("transaction_uid", String, primary_key=True),
    Column("destination", String, nullable=False),
    Column("asked", String, nullable=False),
    # null while there is no answer
    Column("answered", String),
)

#: reports that senders are owed who asked whether this node commits to instances
owed = Table(
    "owed",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("calling_ae_title", String, nullable=False),
    Column("transaction_uid", String, nullable=False),
    Column("peer_host", String, nullable=False),
    # pairs of SOP Class UID and SOP Instance UID
    Column("instances", JSON, nullable=False),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("reason", String),
    Column("asked", String, nullable=False),
    Column("not_before", String, nullable=False),
    Column("updated", String, nullable=False),
    UniqueConstraint("calling_ae_title", "transaction_uid"),
    Index(None, "state", "not_before"),
)

#: the outbox: one row per object and destination, written in the transaction of its result
delivery = Table(
    "delivery",
    metadata,
    Column("sop_instance_uid", ForeignKey("result.sop_instance_uid"), primary_key=True),
    Column("destination", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created", String, nullable=False),
    Column("not_before", String, nullable=False),
    Column("status", Integer),
    Column("reason", String),
    Column("updated", String, nullable=False),
    # in which the destination was asked last to commit; null: not since it was stored
    Column("transaction_uid", String),
    # Failure Reason of that transaction's report; null: none
    Column("failure", Integer),
    # when the destination said that it commits; null: it did not, or was not asked
    Column("committed", String),
    # when it was found again at the destination, in its study; null: it was not, or not looked for
    Column("found", String),
    Index(None, "destination", "state", "not_before"),
)
