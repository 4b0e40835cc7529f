"""Opening the configuration database: made, brought up to date, or refused with one clear line."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from inspect import unwrap
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, make_url, text

from understudy.controller import database as database_module
from understudy.controller import migrate
from understudy.controller.catalog import add_host, list_hosts, list_proxies
from understudy.controller.database import HEAD_REVISION, Database, open_database
from understudy.controller.jobs import list_jobs
from understudy.controller.schema import Base, HostRow
from understudy.errors import DatabaseError, Refused
from understudy.model.access import NO_LIBRARY
from understudy.model.job import Host, ProxyKind

HOST = Host("prod", "qemu:///system", "/var/tmp/scratch")


@pytest.fixture(autouse=True)
def migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here new databases are made by the migrations."""
    monkeypatch.setattr(migrate, "migrate", unwrap(migrate.migrate))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def set_version(opened: Database, version: str) -> None:
    with opened.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})


def test_a_new_home_is_private(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    old = os.umask(0)
    try:
        open_database(home).close()
    finally:
        os.umask(old)
    assert mode(home) == 0o700
    assert mode(home / "understudy.db") == 0o600


def test_what_was_stored_is_there_after_reopening(empty_url: str, tmp_path: Path) -> None:
    first = open_database(tmp_path, empty_url)
    add_host(first, HOST)
    first.close()
    again = open_database(tmp_path, empty_url)
    assert list_hosts(again) == (HOST,)
    again.close()


def test_the_environment_names_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_DATABASE", f"sqlite:///{tmp_path}/elsewhere.db")
    open_database(tmp_path / "home").close()
    assert (tmp_path / "elsewhere.db").exists()
    assert not (tmp_path / "home" / "understudy.db").exists()


def test_sqlite_has_write_ahead_log_foreign_keys_and_a_busy_timeout(tmp_path: Path) -> None:
    opened = open_database(tmp_path)
    with opened.reading() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
        assert session.scalar(text("PRAGMA busy_timeout")) == 30_000
    opened.close()


def test_the_constant_is_the_newest_migration() -> None:
    assert migrate.known_revisions()[-1] == HEAD_REVISION


def test_migrations_and_models_agree(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_every_table_of_the_design_is_there(database: Database) -> None:
    with database.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) == {
            "alembic_version", "hosts", "datastores", "proxies", "jobs", "job_vms", "job_excluded_disks", "sessions",
            "tasks", "steps", "disk_transfers", "replicas", "restore_points", "frozen_guests",
            "invitations", "throttles", "credentials", "guest_host_keys",
        }  # fmt: skip


def test_the_migration_can_be_undone_and_done_again(empty_url: str, tmp_path: Path) -> None:
    opened = open_database(tmp_path, empty_url)
    with opened.engine.connect() as connection, connection.begin():
        command.downgrade(migrate.configuration(connection), "base")
    opened.close()
    again = open_database(tmp_path, empty_url)
    assert [proxy.name for proxy in list_proxies(again)] == ["local"]
    again.close()


NEXT = f"{int(HEAD_REVISION) + 1:04}"
NEXT_MIGRATION = '''
import sqlalchemy as sa
from alembic import op
revision = "{revision}"
down_revision = "{down_revision}"
def upgrade():
    with op.batch_alter_table("hosts") as batch:
        batch.add_column(sa.Column("note", sa.String(10), nullable=False, server_default="new"))
    {then}
def downgrade():
    op.drop_column("hosts", "note")
'''


def test_a_home_of_the_first_schema_keeps_its_jobs_and_gets_the_defaults(site: Database) -> None:
    url = site.engine.url.render_as_string(hide_password=False)
    jobs = list_jobs(site)
    engine = database_module.make_engine(site.engine.url, "test", foreign_keys=False)
    with engine.connect() as connection, connection.begin():
        command.downgrade(migrate.configuration(connection), "0001")
    engine.dispose()
    again = open_database(site.home, url)
    assert list_jobs(again) == jobs
    assert [(proxy.name, proxy.kind) for proxy in list_proxies(again)] == [("local", ProxyKind.CHILD)]
    assert {(host.max_snapshots, host.credential, host.thumbprint, host.library) for host in list_hosts(again)} == {
        (4, "", "", NO_LIBRARY)
    }
    again.close()


def with_next_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str = "") -> None:
    """Play a program that is one schema version newer."""
    scripts = tmp_path / "scripts"
    shutil.copytree(migrate.SCRIPTS, scripts)
    source = NEXT_MIGRATION.format(revision=NEXT, down_revision=HEAD_REVISION, then=then)
    (scripts / "versions" / f"v{NEXT}_note.py").write_text(source)
    monkeypatch.setattr(migrate, "SCRIPTS", scripts)
    monkeypatch.setattr(migrate, "HEAD_REVISION", NEXT)
    monkeypatch.setattr(database_module, "HEAD_REVISION", NEXT)


def test_an_older_schema_is_upgraded_and_keeps_its_rows(
    site: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_next_migration(tmp_path, monkeypatch)
    upgraded = open_database(tmp_path, site.engine.url.render_as_string(hide_password=False))
    with upgraded.reading() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == NEXT
        assert list(session.scalars(text("SELECT note FROM hosts"))) == ["new", "new"]
        # Rebuilding the hosts table must not cascade to what refers to it.
        assert session.scalar(text("SELECT count(*) FROM jobs")) == 1
    upgraded.close()


def test_a_failed_upgrade_changes_nothing(site: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_next_migration(tmp_path, monkeypatch, then="op.execute('SELECT * FROM no_such_table')")
    with pytest.raises(DatabaseError, match="no_such_table"):
        open_database(tmp_path, site.engine.url.render_as_string(hide_password=False))
    with site.engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD_REVISION
        assert "note" not in [column["name"] for column in inspect(connection).get_columns("hosts")]


@pytest.mark.parametrize("version", ["0999", "something"])
def test_a_newer_or_unknown_schema_is_refused_untouched(database: Database, tmp_path: Path, version: str) -> None:
    set_version(database, version)
    with pytest.raises(DatabaseError, match=rf"its schema is '{version}', this program knows up to '{HEAD_REVISION}'"):
        open_database(tmp_path, database.engine.url.render_as_string(hide_password=False))
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == version


def test_a_database_of_another_program_is_refused(empty_url: str, tmp_path: Path) -> None:
    engine = database_module.make_engine(make_url(empty_url), "test")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE invoices (id INTEGER)"))
    engine.dispose()
    with pytest.raises(DatabaseError, match="not a database of Understudy"):
        open_database(tmp_path, empty_url)


def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "understudy.db"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(DatabaseError, match=r"open configuration database .*: file is not a database; the file is dam"):
        open_database(tmp_path)
    assert path.read_bytes() == b"no database " * 1000


def test_a_page_damaged_in_the_middle_is_a_database_error(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    path = tmp_path / "understudy.db"
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\x5a" * (len(raw) - 4096)
    path.write_bytes(raw)

    def use() -> None:
        opened = open_database(tmp_path)
        try:
            add_host(opened, HOST)
        finally:
            opened.close()

    with pytest.raises(DatabaseError, match="malformed"):
        use()


def test_a_home_that_cannot_be_made_is_a_database_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match=r"cannot make .*file/home: Not a directory"):
        open_database(tmp_path / "file" / "home")


def test_an_unreachable_server_is_told_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError) as caught:
        open_database(tmp_path, f"postgresql://me:geheim@/x?host={tmp_path}&password=geheim2")
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense", "postgresql://u:geheim@h:port/x", "mysql://u:geheim@h/x"])
def test_an_unusable_url_is_told_without_the_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        open_database(tmp_path, url)
    assert "geheim" not in str(caught.value)


def test_a_transaction_that_raises_changes_nothing(database: Database) -> None:
    def half() -> None:
        with database.transaction() as session:
            session.add(HostRow(name="x", uri="u", scratch_dir="/", max_snapshots=4, nbd_address="", thumbprint="",
                                library_dir="", library_plugin="vddk"))
            session.flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        half()
    assert list_hosts(database) == ()


def test_a_row_made_twice_at_once_is_refused(database: Database) -> None:
    add_host(database, HOST)

    def again() -> None:
        with database.transaction() as session:
            session.add(HostRow(name="prod", uri="u", scratch_dir="/", max_snapshots=4, nbd_address="", thumbprint="",
                                library_dir="", library_plugin="vddk"))

    with pytest.raises(Refused, match="at the same moment"):
        again()


def test_threads_write_at_the_same_time(database: Database) -> None:
    names = [f"host {number:02}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_host(database, Host(name, "qemu:///system", "/s")), names))
    assert [host.name for host in list_hosts(database)] == names


def test_processes_that_open_a_new_home_at_the_same_time_all_succeed(empty_url: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from understudy.controller.database import open_database;"
        "open_database(Path(sys.argv[1]), sys.argv[2]).close()"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "new"), empty_url], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    problems = [(process.communicate()[1], process.returncode) for process in running]
    assert problems == [(b"", 0)] * 4


def test_opening_a_current_database_does_not_import_alembic(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    code = (
        "import sys; from pathlib import Path; from understudy.controller.database import open_database;"
        "open_database(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
