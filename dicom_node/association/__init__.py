"""DICOM on the wire: the acceptor, the requestor and a collector; pynetdicom lives here."""
