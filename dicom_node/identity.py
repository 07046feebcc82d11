"""Who made it: the names and UIDs by which this program is known on the wire and in its files.

They must not change from release to release: by derived UIDs a PACS tells a repeated object from a
new one.
"""

from __future__ import annotations

from uuid import NAMESPACE_OID, uuid5

from pydicom import uid

from dicom_node import __version__

MANUFACTURER = "dicom_node"
MODEL_NAME = "dicom_node anomaly detection"
#: of results that are no images like a scanner's: nobody else's objects of these are taken
RESULT_SOP_CLASSES = (
    uid.SegmentationStorage,
    uid.Comprehensive3DSRStorage,
    uid.ParametricMapStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.KeyObjectSelectionDocumentStorage,
)
#: burned into every picture, written into every description
RESEARCH_ONLY = "RESEARCH USE ONLY - NOT FOR DIAGNOSIS"


def derived_uid(*parts: str) -> str:
    """Return a UUID-derived UID (PS3.5 B.2), the same for the same parts, in 44 characters or less.

    The parts are joined by the unit separator, so that ("ab", "c") and ("a", "bc") differ.
    """
    return f"2.25.{uuid5(NAMESPACE_OID, chr(0x1F).join(parts)).int}"


#: names this implementation in association negotiation (PS3.7 D.3.3.2) and in files (PS3.10 7.1)
IMPLEMENTATION_CLASS_UID = derived_uid(MANUFACTURER, "implementation class")
IMPLEMENTATION_VERSION_NAME = f"DICOMNODE_{__version__}"[:16]
#: the same for every node: whoever receives an object can know that a node made it
INSTANCE_CREATOR_UID = derived_uid(MANUFACTURER, "instance creator")


def is_own(creator_uid: str, manufacturer: str, model: str) -> bool:
    """Tell whether an object says that a node made it: this one or another, of any version.

    A PACS that anonymises or re-tags drops the Instance Creator UID (0008,0014) and keeps the
    equipment (0008,0070) and (0008,1090), or the other way round.
    """
    return creator_uid == INSTANCE_CREATOR_UID or (manufacturer, model) == (
        MANUFACTURER,
        MODEL_NAME,
    )
