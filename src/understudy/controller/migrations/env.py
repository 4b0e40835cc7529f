"""Alembic's entry: runs the migrations on the connection that the program gives."""

from __future__ import annotations

from alembic import context

from understudy.controller.schema import Base

# Batch mode: SQLite cannot alter most of a table, so a later migration rebuilds it.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
