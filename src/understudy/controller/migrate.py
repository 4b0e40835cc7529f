"""Bringing an older configuration database to the current schema. Imported only when that is due: Alembic is slow."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.engine import Connection

from understudy.controller.database import HEAD_REVISION, Database, make_engine, schema_version
from understudy.errors import DatabaseError

SCRIPTS = Path(__file__).parent / "migrations"

# Any number, the same in every controller: PostgreSQL's advisory locks are numbers.
_ADVISORY_LOCK = 0x756E6465


def migrate(database: Database, what: str) -> None:
    """Upgrade the schema in one transaction; nothing changes when it fails. Several processes may try at once.

    :raises DatabaseError: if the database is of a newer or unknown version.
    """
    # An own engine: SQLite enforces foreign keys per connection, and only outside a transaction can that be changed.
    engine = make_engine(database.engine.url, what, foreign_keys=False)
    try:
        with _one_process(database.home, what), engine.connect() as connection, connection.begin():
            _lock(connection)
            _refuse_unknown(schema_version(connection, what), what)
            command.upgrade(configuration(connection), "head")
    finally:
        engine.dispose()


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration; there is no ini file, the connection is ours."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def known_revisions() -> tuple[str, ...]:
    """All schema versions that this program knows, oldest first."""
    script = ScriptDirectory.from_config(configuration())
    return tuple(reversed([revision.revision for revision in script.walk_revisions()]))


def _refuse_unknown(found: str | None, what: str) -> None:
    if found is not None and found not in known_revisions():
        raise DatabaseError(
            what,
            f"its schema is {found!r}, this program knows up to {HEAD_REVISION!r}",
            "it was made by a newer or another Understudy: use that one",
        )


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _ADVISORY_LOCK})


@contextmanager
def _one_process(home: Path, what: str) -> Iterator[None]:
    """Keep other processes of this home out; the lock ends with the process."""
    try:
        handle = os.open(home / "migrate.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise DatabaseError(what, f"cannot lock {home}: {exc.strerror}", "check its permissions") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
