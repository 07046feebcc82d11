"""Which SOP Classes and transfer syntaxes the node accepts.

The tuples are the conformance statement's tables: what stands here is promised to every sender.
Objects that are not images (documents, waveforms, ...) are refused at negotiation, where a sender
notices it, rather than stored and forgotten. Of the classes of our own results only those are
taken: a PACS that routes whole studies here would otherwise try for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom import uid
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from dicom_node.identity import RESULT_SOP_CLASSES

#: images that the node scores
SCORED_SOP_CLASSES: tuple[UID, ...] = (
    uid.CTImageStorage,
    uid.MRImageStorage,
    uid.EnhancedCTImageStorage,
    uid.EnhancedMRImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
)

#: filed, acknowledged and not scored: scanners push them with the images of the same study
FILED_SOP_CLASSES: tuple[UID, ...] = (
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameSingleBitSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
)

#: in order of preference: what needs no decoder first, then lossless, then lossy
TRANSFER_SYNTAXES: tuple[UID, ...] = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
)


def acceptor_contexts() -> list[PresentationContext]:
    """Return the presentation contexts the acceptor supports.

    Images, Verification, and storage commitment in both roles: a sender may ask for it, and a
    destination brings the reports that were asked of it.
    """
    storage = storage_contexts((*SCORED_SOP_CLASSES, *FILED_SOP_CLASSES, *RESULT_SOP_CLASSES))
    commitment = build_context(StorageCommitmentPushModel)
    commitment.scu_role = commitment.scp_role = True
    return [*storage, build_context(Verification), commitment]


def storage_contexts(sop_classes: Iterable[str]) -> list[PresentationContext]:
    """Return one context per SOP Class, with every transfer syntax of the node.

    An acceptor may support any number; a request holds at most 128 (PS3.8 9.3.2.2: odd identifiers
    up to 255).
    """
    return [build_context(sop_class, list(TRANSFER_SYNTAXES)) for sop_class in sop_classes]


def readable(uid_text: str) -> str:
    """Return the name of a SOP Class or transfer syntax with its UID, or the UID alone."""
    name = UID(uid_text).name
    return name if name == uid_text else f"{name} ({uid_text})"
