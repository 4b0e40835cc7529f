"""Opening the configuration database, and its transactions.

SQLite in the controller's home by default; any PostgreSQL by URL. Opening brings an older schema up to date; a database
of a newer program, or of another one, is refused untouched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from understudy.errors import DatabaseError, Refused

URL_VARIABLE = "UNDERSTUDY_DATABASE"
FILE_NAME = "understudy.db"

# The newest migration. Compared here, so that only a database that is not up to date pays for importing Alembic.
HEAD_REVISION = "0007"

_BUSY_TIMEOUT_S = 30.0


class Database:
    """An open configuration database of the current schema; may be shared by threads.

    :ivar home: the controller's home.
    """

    def __init__(self, home: Path, engine: Engine, what: str) -> None:
        self.home = home
        self.engine = engine
        self._what = what
        # A transaction that will write takes SQLite's write lock at once: one that reads first and writes later
        # cannot wait for the lock, it fails when another writer came between.
        self._writing = engine.execution_options(understudy_begin="BEGIN IMMEDIATE")

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction that may write: committed at the end of the block, rolled back when it raises.

        :raises DatabaseError: if the database fails.
        :raises Refused: if another process made what this one was making.
        """
        with translated(self._what), Session(self._writing) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One transaction that only reads; it never waits for a writer.

        :raises DatabaseError: if the database fails.
        """
        with translated(self._what), Session(self.engine) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(home: Path, url: str | None = None) -> Database:
    """The configuration database of ``home``, made if missing, brought up to date if older.

    :param url: SQLAlchemy URL; the environment's ``UNDERSTUDY_DATABASE``, or SQLite in ``home``, if None.
    :raises DatabaseError: if it cannot be opened, is damaged, or is not of this or an older version.
    """
    address = _address(home, url)
    what = f"open configuration database {_shown(address)}"
    _make_home(home, what)
    if address.get_backend_name() == "sqlite" and address.database:
        _make_private_file(Path(address.database), what)
    database = Database(home, make_engine(address, what), what)
    try:
        with translated(what):
            _bring_up_to_date(database, what)
    except BaseException:
        database.close()
        raise
    return database


def make_engine(address: URL, what: str, foreign_keys: bool = True) -> Engine:
    """An engine with our settings; connects at first use.

    :param foreign_keys: off while SQLite tables are rebuilt by a migration, which would cascade otherwise.
    :raises DatabaseError: if the driver is missing or the kind of database is unknown.
    """
    backend = address.get_backend_name()
    if backend == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    elif backend != "sqlite":
        raise DatabaseError(what, f"unsupported kind {backend!r}", "use sqlite or postgresql")
    connect = {"timeout": _BUSY_TIMEOUT_S} if backend == "sqlite" else {"connect_timeout": 10}
    try:
        # Parameters stay out of error texts: they may hold names of machines that do not belong in a log.
        engine = create_engine(address, connect_args=connect, hide_parameters=True)
    except ImportError as exc:
        raise DatabaseError(what, str(exc), "install it: pip install 'understudy[postgresql]'") from exc
    if backend == "sqlite":
        event.listen(engine, "connect", _sqlite_settings(foreign_keys))
        event.listen(engine, "begin", _sqlite_begin)
    return engine


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn errors of the database layer into ours; ``what`` was being done.

    :raises DatabaseError: for what the database could not do.
    :raises Refused: for what it would not do, because another process was faster.
    """
    try:
        yield
    except IntegrityError as exc:
        raise Refused(what, f"changed by another process at the same moment ({_cause(exc)})", "try again") from exc
    except SQLAlchemyError as exc:
        why = _cause(exc)
        raise DatabaseError(what, why, _advice(why)) from exc


def _address(home: Path, url: str | None) -> URL:
    text_url = url or os.environ.get(URL_VARIABLE, "")
    if not text_url:
        return URL.create("sqlite", database=str(home / FILE_NAME))
    try:
        return make_url(text_url)
    except (SQLAlchemyError, ValueError) as exc:
        # The text itself stays out of the message: it may hold a password.
        raise DatabaseError("open configuration database", f"{URL_VARIABLE} is not a database URL",
                            "use e.g. postgresql://user@server/understudy") from exc


def _shown(address: URL) -> str:
    """The address without its secrets."""
    if address.get_backend_name() == "sqlite":
        return address.database or "(in memory)"
    return address.set(query={}).render_as_string(hide_password=True)


def _make_home(home: Path, what: str) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise DatabaseError(what, f"cannot make {home}: {exc.strerror}", "choose another --home") from exc


def _make_private_file(path: Path, what: str) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise DatabaseError(what, str(exc.strerror), "check the path and its permissions") from exc


def _sqlite_settings(foreign_keys: bool) -> Callable[[Any, Any], None]:
    def apply(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling begins too late and not before DDL; _sqlite_begin replaces it.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    return apply


def _sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("understudy_begin", "BEGIN"))


def _bring_up_to_date(database: Database, what: str) -> None:
    with database.engine.connect() as connection:
        found = schema_version(connection, what)
    if found != HEAD_REVISION:
        from understudy.controller.migrate import migrate

        migrate(database, what)


def schema_version(connection: Connection, what: str) -> str | None:
    """The schema version of the database; None if the database is empty.

    :raises DatabaseError: if it holds something else.
    """
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return version
    if tables:
        raise DatabaseError(what, "it is not a database of Understudy", "choose another home or database")
    return None


def _cause(exc: SQLAlchemyError) -> str:
    """What the database said, on one line, without the statement."""
    said = exc.orig if isinstance(exc, DBAPIError) else exc
    lines = str(said).strip().splitlines()
    return lines[0] if lines else type(said).__name__


def _advice(why: str) -> str:
    if "not a database" in why or "malformed" in why:
        return "the file is damaged: restore it from a copy, or move it away and adopt the replicas again"
    if "locked" in why:
        return "another process holds it; try again"
    return "check that it exists, can be reached, and that its storage is not full"
