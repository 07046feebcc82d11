"""The ledger: the only importer of SQLAlchemy.

One module per table or pair of tables, all functions of an open connection, so that the caller
decides what is one transaction. Frozen records go out, and rows where they are only printed. The
rows are the truth of the node: a file's presence is never a state.
"""
