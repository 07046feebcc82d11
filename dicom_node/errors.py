"""The exception tree. The class docstring is the default message; identifiers are attributes.

Foreign exceptions become one of these at the module that owns the library. Messages reach the log,
the ledger and the sender: they name UIDs and attributes, never a patient.

::

    NodeError                          HALT
    ├── ConfigError                    HALT    the command line prints file and key, exit 2
    ├── PartFailed                     HALT    a supervised process cannot start
    ├── InputError                     REJECT  what was received is at fault
    │   ├── ExportInvalid                      an exported reference batch is damaged
    │   ├── InstanceRejected (.status)         UnsupportedSOPClass, DataSetMismatch,
    │   │                                      UnreadableDataSet
    │   └── SeriesRejected                     InconsistentSeries, IrregularGeometry,
    │                                          TooManyVolumes, UnsupportedPixels,
    │                                          NoMatchingProtocol, NotScorable, OwnResult,
    │                                          EmptyForeground, RegistrationFailed
    ├── InsufficientReference          WAIT    re-run when the batch has grown
    ├── TokenSpaceMismatch             WAIT    a batch of another fingerprint: rebuild one
    ├── DecisionRefused                HALT    a person's wish for the batch cannot be followed
    ├── ScoringError                   HALT    NonFiniteScores, WeightsMissing, WeightsMismatch,
    │                                          SpaceMissing
    ├── ObjectError                    HALT    we made an invalid object: a bug
    ├── DeliveryError (.destination)   RETRY   AssociationRefused, AssociationLost,
    │                                          ContextNotAccepted, StoreFailed (.status),
    │                                          FileUnreadable, CommitmentRefused (.status),
    │                                          QueryFailed (.status),
    │                                          RetrieveFailed (.status)
    └── StoreError                     RETRY   InboxFull (.status 0xA700), DatabaseUnavailable
"""

from __future__ import annotations

from enum import Enum, IntEnum


class Disposition(Enum):
    """What the worker does with a job that raised."""

    #: the moment is at fault: again later, until the attempts are used up
    RETRY = "retry"
    #: nothing is at fault: again when the reference batch has grown
    WAIT = "wait"
    #: the data is at fault: recorded with its reason, not tried again by itself
    REJECT = "reject"
    #: we are at fault: set aside until somebody has looked
    HALT = "halt"


class StoreStatus(IntEnum):
    """C-STORE response statuses (PS3.4 Table B.2-1; 0122 is PS3.7's, 9.1.1.1.9)."""

    SUCCESS = 0x0000
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class NodeError(Exception):
    """The node failed."""

    #: of the class; what is not ours, and what no subclass says otherwise, halts
    disposition = Disposition.HALT

    def __init__(self, message: str | None = None, **attributes: object) -> None:
        # the first line alone: what follows is for whoever reads the code
        super().__init__(message or (self.__class__.__doc__ or "").strip().splitlines()[0])
        for name, value in attributes.items():
            setattr(self, name, value)


class ConfigError(NodeError):
    """The configuration is not valid."""


class PartFailed(NodeError):
    """A part of the node could not start."""


class InputError(NodeError):
    """What was received is at fault."""

    disposition = Disposition.REJECT


class InstanceRejected(InputError):
    """The instance was refused; ``status`` goes back to the sender."""

    status: int = StoreStatus.CANNOT_UNDERSTAND


class UnsupportedSOPClass(InstanceRejected):
    """The SOP Class is not one this node accepts."""

    status = StoreStatus.SOP_CLASS_NOT_SUPPORTED


class DataSetMismatch(InstanceRejected):
    """The data set does not match its SOP Class or SOP Instance UID."""

    status = StoreStatus.DATA_SET_MISMATCH


class UnreadableDataSet(InstanceRejected):
    """The data set cannot be read."""

    status = StoreStatus.CANNOT_UNDERSTAND


class SeriesRejected(InputError):
    """The series cannot be scored."""


class InconsistentSeries(SeriesRejected):
    """The instances of the series do not belong to one volume."""


class IrregularGeometry(SeriesRejected):
    """The slices of the series do not form a regular volume."""


class TooManyVolumes(SeriesRejected):
    """The series holds more volumes than are scored of one series."""


class UnsupportedPixels(SeriesRejected):
    """The pixel data of the series cannot be decoded."""


class NoMatchingProtocol(SeriesRejected):
    """No protocol rule of the configuration matches the series."""


class NotScorable(SeriesRejected):
    """The series holds no CT or MR image; it was filed and is not scored."""


class OwnResult(SeriesRejected):
    """The series is a result of dicom_node that came back; it is never scored."""


class EmptyForeground(SeriesRejected):
    """No foreground was found in the volume."""


class RegistrationFailed(SeriesRejected):
    """The volume could not be brought to the template; ``criterion`` says what was not reached."""

    #: which of the limits, the value that was found, and what it had to be
    criterion: str
    value: float
    limit: float


class ExportInvalid(InputError):
    """The exported reference batch cannot be imported."""


class InsufficientReference(NodeError):
    """The reference batch is smaller than its minimum."""

    disposition = Disposition.WAIT


class TokenSpaceMismatch(NodeError):
    """The reference batch was made with another fingerprint."""

    disposition = Disposition.WAIT


class DecisionRefused(NodeError):
    """The decision about the reference batch cannot be carried out."""


class ScoringError(NodeError):
    """The study could not be scored."""


class NonFiniteScores(ScoringError):
    """A score is not a finite number."""


class WeightsMissing(ScoringError):
    """The encoder weights file does not exist."""


class WeightsMismatch(ScoringError):
    """The encoder weights file is not the one that was named."""


class SpaceMissing(ScoringError):
    """The file of a protocol's space is missing or damaged."""


class ObjectError(NodeError):
    """A result object could not be made."""


class DeliveryError(NodeError):
    """A result object could not be delivered."""

    disposition = Disposition.RETRY
    destination: str = ""


class AssociationRefused(DeliveryError):
    """The destination refused the association or could not be reached."""


class AssociationLost(DeliveryError):
    """The association ended before the destination answered."""


class ContextNotAccepted(DeliveryError):
    """The destination accepts no presentation context for the object."""


class FileUnreadable(DeliveryError):
    """The file of a result object cannot be read."""


class StoreFailed(DeliveryError):
    """The destination answered C-STORE with a failure status."""

    status: int = 0


class CommitmentRefused(DeliveryError):
    """The peer refused a storage commitment request or report, or does not commit."""

    #: of the response; None: it took the request
    status: int | None = None


class QueryFailed(DeliveryError):
    """The destination answered a query (C-FIND) with a failure status."""

    status: int = 0


class RetrieveFailed(DeliveryError):
    """The archive answered a retrieval (C-MOVE, C-GET) with a failure status."""

    status: int = 0


class StoreError(NodeError):
    """The node's own store failed."""

    disposition = Disposition.RETRY


class InboxFull(StoreError):
    """The disk reserve is reached; nothing more is accepted."""

    status: int = StoreStatus.OUT_OF_RESOURCES


class DatabaseUnavailable(StoreError):
    """The ledger does not answer."""
