"""The application entity of both roles: our identity, our PDU size, no message dumps.

Acceptor and requestor are one AE to their peers, so both are made here.
"""

from __future__ import annotations

from pynetdicom import AE, _config

from dicom_node.association import sockets
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME


def application_entity(ae_title: str, timeout_s: float) -> AE:
    """Return an application entity whose ACSE, DIMSE and network time-outs are `timeout_s`.

    References
    ----------
    PS3.7 D.3.3.2 (implementation identification), PS3.8 D.1 (maximum length).
    """
    # the library's own message dumps cost time and show headers in the log
    _config.LOG_HANDLER_LEVEL = "none"
    entity = AE(ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_pdu_size = sockets.MAX_PDU_BYTES
    entity.connection_timeout = entity.acse_timeout = timeout_s
    entity.dimse_timeout = entity.network_timeout = timeout_s
    return entity
