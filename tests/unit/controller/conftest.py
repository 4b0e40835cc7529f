"""Databases for tests: each test that takes ``database`` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.controller.postgresql_server import programs, running_server
from understudy.controller.catalog import add_datastore, add_host
from understudy.controller.database import Database, open_database
from understudy.controller.jobs import create_job
from understudy.model.job import Datastore, Host, Job

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a PostgreSQL server, with a place for the database's name."""
    bin_dir = programs()
    if bin_dir is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with running_server(bin_dir) as url:
        yield url


@contextmanager
def new_postgresql(server: str, template: str = "template0") -> Iterator[str]:
    """URL of a new database on the server, which is dropped at the end."""
    import psycopg

    name = f"t{next(_numbers)}"
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        yield server.format(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def migrated_postgresql(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a PostgreSQL database with our schema and nothing in it, to make others from."""
    with new_postgresql(server) as url:
        open_database(tmp_path_factory.mktemp("home"), url).close()
        yield url.partition("@/")[2].partition("?")[0]


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an SQLite file."""
    home = tmp_path_factory.mktemp("home")
    open_database(home, f"sqlite:///{home}/template.db").close()
    return home / "template.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    with new_postgresql(request.getfixturevalue("server")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database of the current schema."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "understudy.db")
        yield f"sqlite:///{tmp_path}/understudy.db"
        return
    template = request.getfixturevalue("migrated_postgresql")
    with new_postgresql(request.getfixturevalue("server"), template) as url:
        yield url


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    """The same, open."""
    opened = open_database(tmp_path, database_url)
    yield opened
    opened.close()


@pytest.fixture
def site(database: Database) -> Database:
    """A database with two hosts, a datastore, and the job ``nightly`` for the VMs ``web 1`` and ``db``."""
    add_host(database, Host("prod", "qemu+ssh://root@prod/system", "/var/tmp/scratch"))
    add_host(database, Host("dr", "qemu+ssh://root@dr/system", "/var/tmp/scratch"))
    add_datastore(database, Datastore("vault", "dr", "qcow2", "/srv/replicas"))
    create_job(database, Job("0" * 31 + "1", "nightly", "prod", "dr", "vault", ("web 1", "db")))
    return database
