"""DICOM on the wire: the acceptor, the requestor and a collector; pynetdicom lives here.

No other package imports pynetdicom, so that what the library leaves undone (see ``sockets``) is
mended once and for both roles. Nothing here opens the ledger, decodes a pixel or loads torch.
"""
