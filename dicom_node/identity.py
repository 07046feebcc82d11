"""Who made it: the names and UIDs by which this program is known on the wire and in its files.

They must not change from release to release: by derived UIDs a PACS tells a repeated object from a
new one.
"""

from __future__ import annotations

from uuid import NAMESPACE_OID, uuid5

from dicom_node import __version__

MANUFACTURER = "dicom_node"
MODEL_NAME = "dicom_node anomaly detection"
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
