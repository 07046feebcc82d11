"""Archives that answer as a test says, on free ports, by the library's own acceptor."""

from contextlib import contextmanager

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from dicom_node.association.contexts import SCORED_SOP_CLASSES, TRANSFER_SYNTAXES
from dicom_node.association.requestor import Peer

MODELS = (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)


@contextmanager
def archive(*, find=None, get=None, move=None, models=MODELS, sends=True, timeout_s=20):
    """A peer whose handlers are generators of the library; yields how it is called."""
    entity = AE("ARCHIVE")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    for model in models:
        entity.add_supported_context(model)
    if sends:
        for uid in SCORED_SOP_CLASSES:
            entity.add_supported_context(uid, list(TRANSFER_SYNTAXES), scu_role=True, scp_role=True)
    wanted = ((evt.EVT_C_FIND, find), (evt.EVT_C_GET, get), (evt.EVT_C_MOVE, move))
    handlers = [(event, handler) for event, handler in wanted if handler is not None]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield Peer("pacs", "ARCHIVE", "127.0.0.1", server.server_address[1])
    finally:
        server.shutdown()
        for assoc in server.active_associations:
            assoc.abort()


def answer(**values):
    """An identifier."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def sendable(ds):
    """An instance as the library sends it: it asks for the transfer syntax."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds
