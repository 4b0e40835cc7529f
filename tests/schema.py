"""New configuration databases by copying one that the migrations made, which take longer than a short test."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import make_url

from understudy.controller.database import Database, make_engine, schema_version

Migrate = Callable[[Database, str], None]


def copying_schema(original: Migrate) -> Migrate:
    """What does the same as ``original``, but migrates only what is no empty SQLite file."""
    schema = functools.cache(lambda: _schema(original))

    @functools.wraps(original)
    def migrate(database: Database, what: str) -> None:
        url = database.engine.url
        with database.engine.connect() as connection:
            new = schema_version(connection, what) is None
        if not new or url.get_backend_name() != "sqlite" or not url.database:
            original(database, what)
            return
        with closing(sqlite3.connect(":memory:")) as made, closing(sqlite3.connect(url.database)) as file:
            made.deserialize(schema())
            made.backup(file)

    return migrate


def _schema(migrate: Migrate) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        url, what = make_url(f"sqlite:///{place}/new.db"), "make a database"
        database = Database(Path(place), make_engine(url, what), what)
        migrate(database, what)
        database.close()
        with closing(sqlite3.connect(f"{place}/new.db")) as connection:
            # A database in memory can have no write-ahead log, and every connection of the program asks for one.
            connection.execute("PRAGMA journal_mode = DELETE")
            return connection.serialize()
