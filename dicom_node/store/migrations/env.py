"""Run the migrations on the connection that :func:`dicom_node.store.database.migrate` opened."""

from __future__ import annotations

from alembic import context

from dicom_node.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
