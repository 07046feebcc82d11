"""Run the migrations on the connection that :func:`dicom_node.store.database.migrate` opened.

Alembic runs this file by its path. It opens nothing itself, so that all steps share the caller's
transaction: a ledger is wholly upgraded or not at all.
"""

from __future__ import annotations

from alembic import context

from dicom_node.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter a column in place: a step copies the table
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
