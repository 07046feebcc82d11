"""The ledger: the only importer of SQLAlchemy."""
