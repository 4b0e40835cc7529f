"""A real PostgreSQL in the stand-in for a guest: a backup from begin to end, whatever happens to its session."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.guests.component.private_guest import PrivateGuest

_LOAD_S = 60


def _as_postgres(guest: PrivateGuest, command: str, *, check: bool = True) -> None:
    """Run a command as the cluster's owner; what it starts keeps nothing of ours open."""
    guest.write("/tmp/as-postgres", f"cd / && {command}\n".encode(), 0o755)
    guest.sh("su -s /bin/sh postgres -c 'sh /tmp/as-postgres' >/tmp/as-postgres.log 2>&1", check=check)


def _postgresql_programs() -> str:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    return str(found[-1].parent)


@pytest.fixture(scope="module")
def cluster(machine: PrivateGuest) -> Iterator[str]:
    """The data directory of a running cluster, with pgbench's tables in it."""
    programs = _postgresql_programs()
    data = "/tmp/postgresql/data dir"
    machine.sh("mkdir -p /tmp/postgresql && chown postgres /tmp/postgresql")
    options = "-k /tmp/postgresql -c listen_addresses= -c fsync=off"
    _as_postgres(machine, f"{programs}/initdb -D '{data}' --no-sync")
    _as_postgres(machine, f"{programs}/pg_ctl -D '{data}' -o '{options}' -l /tmp/postgresql/log -w start")
    _as_postgres(machine, "pgbench -q -i -s 2 -h /tmp/postgresql")
    try:
        yield data
    finally:
        _as_postgres(machine, f"{programs}/pg_ctl -D '{data}' -m immediate stop", check=False)
        machine.sh("rm -rf /tmp/postgresql")


@contextmanager
def _load(guest: PrivateGuest) -> Iterator[subprocess.Popen[bytes]]:
    words = guest.entering("su", "-s", "/bin/sh", "postgres", "-c", f"pgbench -n -c 2 -T {_LOAD_S} -h /tmp/postgresql")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as load:
        try:
            guest.eventually("pgrep -x pgbench >/dev/null")
            yield load
        finally:
            guest.sh("pkill -x pgbench || :")


def test_a_cluster_is_found_by_its_process(guest: PrivateGuest, cluster: str) -> None:
    found = guest.ask("discover").of("app")
    assert [line[:2] for line in found] == [["postgresql", cluster]]
    assert "port 5432" in found[0][2]


def test_a_copy_taken_between_begin_and_end_starts_with_the_label(guest: PrivateGuest, cluster: str) -> None:
    programs = _postgresql_programs()
    copy = "/tmp/postgresql/copy"
    with _load(guest):
        since = time.monotonic()
        begun = guest.ask("begin", "s1", "30")
        assert time.monotonic() - since < 10
        assert begun.of("app")[0][2] == "quiesced", begun
        # Not in one instant: the files change while they are copied, as only a backup with a label forgives.
        guest.sh(f"cp -a '{cluster}' {copy}", check=False)
        ended = guest.ask("end", "s1")
    assert ended.of("app")[0][2] == "thawed"
    assert ended.of("expired") == []
    kind, name, label = ended.of("label")[0]
    assert (kind, name) == ("postgresql", cluster)
    text = base64.b64decode(label)
    assert b"START WAL LOCATION" in text
    assert b"LABEL: understudy s1" in text
    # The end of the backup is in the log: this is what an archive would have had.
    guest.sh(f"rm -rf {copy}/pg_wal {copy}/postmaster.*; cp -a '{cluster}/pg_wal' {copy}/pg_wal")
    guest.write(f"{copy}/backup_label", text, 0o600)
    guest.sh(f"chown postgres {copy}/backup_label; mkdir /tmp/postgresql/s2; chown postgres /tmp/postgresql/s2")
    options = "-k /tmp/postgresql/s2 -c listen_addresses="
    try:
        _as_postgres(guest, f"{programs}/pg_ctl -D {copy} -o '{options}' -l /tmp/postgresql/log2 -w start")
        assert guest.sh(f"ls {copy}/backup_label.old") == f"{copy}/backup_label.old"
        _as_postgres(guest, "psql -q -h /tmp/postgresql/s2 -c 'CREATE EXTENSION amcheck'")
        _as_postgres(guest, f"{programs}/pg_amcheck -h /tmp/postgresql/s2 --heapallindexed -d postgres")
    finally:
        _as_postgres(guest, f"{programs}/pg_ctl -D {copy} -m immediate stop", check=False)


def test_a_backup_ends_with_its_session_at_the_deadline(guest: PrivateGuest, cluster: str) -> None:
    guest.ask("begin", "s1", "2")
    assert guest.sh("pgrep -x psql") != ""
    guest.eventually("[ -e /run/understudy-guest/s1/session/ended ]")
    assert guest.sh("pgrep -x psql || :") == ""
    ended = guest.ask("end", "s1")
    assert ended.of("app")[0][2:] == ["failed", "the backup was cancelled"]
    assert ended.of("label") == []
    assert ended.of("expired")
    # The server's state allows the next one at once.
    assert guest.ask("begin", "s2", "20").of("app")[0][2] == "quiesced"
    assert guest.ask("end", "s2").of("label")


def test_a_client_that_was_killed_is_told_as_failed(guest: PrivateGuest, cluster: str) -> None:
    guest.ask("begin", "s1", "20")
    guest.sh("pkill -9 -x psql")
    guest.eventually("! pgrep -x psql >/dev/null")
    ended = guest.ask("end", "s1")
    assert ended.of("app")[0][2] == "failed"
    assert ended.of("label") == []
    assert ended.of("expired") == []


def test_a_server_that_does_not_answer_costs_its_share_of_the_time_only(guest: PrivateGuest, cluster: str) -> None:
    guest.write("/etc/understudy/hooks.d/10-a", b"#!/bin/sh\n", 0o755)
    process = f"$(head -n 1 '{cluster}/postmaster.pid')"
    guest.sh(f"kill -STOP {process}")
    try:
        since = time.monotonic()
        begun = guest.ask("begin", "s1", "8")
        assert time.monotonic() - since < 8
    finally:
        guest.sh(f"kill -CONT {process}")
    assert [line[2] for line in begun.of("app")] == ["quiesced", "failed"]
    assert begun.lines[-1] == ["ready"]
    guest.ask("end", "s1")
    assert guest.sh("pgrep -x psql || :") == ""


def test_cleanup_ends_a_backup_whose_watchdog_was_killed(guest: PrivateGuest, cluster: str) -> None:
    guest.ask("begin", "s1", "60")
    guest.sh("kill -9 $(pgrep -f '[w]atch s1')")
    guest.ask("cleanup")
    assert guest.sh("pgrep -x psql || :") == ""
