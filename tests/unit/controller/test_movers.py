"""Proxies of this machine: one process for each name, never two in one place, started again when dead."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.context import Context
from understudy.controller import catalog, lock, movers
from understudy.controller.database import Database, open_database
from understudy.controller.movers import MoverPool
from understudy.controller.proxies import ProxyChange, change_proxy
from understudy.errors import MoverError
from understudy.model.job import Proxy
from understudy.mover.api import About, MoverInfo
from understudy.mover.client import MoverClient
from understudy.mover.process import MoverProcess


@pytest.fixture
def records(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Database]:
    """A database with the proxies that these tests name."""
    shutil.copy(migrated_sqlite, tmp_path / "understudy.db")
    opened = open_database(tmp_path, f"sqlite:///{tmp_path}/understudy.db")
    for name in ("one", "two", "a%2Fb", "c d", "p"):
        catalog.add_proxy(opened, Proxy(name, "", 1))
    yield opened
    opened.close()


@pytest.fixture
def pool(tmp_path: Path, records: Database) -> Iterator[MoverPool]:
    made = MoverPool(tmp_path, records)
    yield made
    made.close()


def child(pool: MoverPool, name: str) -> MoverProcess:
    process = pool.start(name).result()
    assert isinstance(process, MoverProcess)
    return process


def who(client: MoverClient) -> MoverInfo:
    return client.call(About(), MoverInfo)


def test_two_proxies_that_start_at_once_live_in_two_places(pool: MoverPool, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Path] = []
    both = threading.Barrier(2)

    class Process:
        """Stands for a child that takes its directory late, as on a busy machine."""

        alive = True

        def __init__(self, name: str, run_dir: Path, *_: object) -> None:
            both.wait(20)
            places.append(run_dir)
            run_dir.mkdir(exist_ok=True)

        def close(self) -> None:
            pass

    monkeypatch.setattr(movers, "MoverProcess", Process)
    started = [pool.start("one"), pool.start("two")]
    for process in started:
        process.result(20)
    assert len(set(places)) == 2


def test_a_name_is_one_process_with_its_own_state_and_log(pool: MoverPool, tmp_path: Path) -> None:
    first, again, other = who(pool.get("a%2Fb")), who(pool.get("a%2Fb")), who(pool.get("c d"))
    assert (first.name, other.name) == ("a%2Fb", "c d")
    assert first.pid == again.pid
    assert first.pid not in (other.pid, os.getpid())
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"proxy-a%252Fb.log", "proxy-c d.log"}


def test_a_proxy_that_died_is_started_again_when_it_is_asked_for(pool: MoverPool) -> None:
    process = child(pool, "p")
    os.kill(process.pid, signal.SIGKILL)
    assert Context().wait_until(lambda: not process.alive, timeout_s=20)
    assert who(pool.get("p")).pid != process.pid


def test_closing_ends_every_proxy_and_removes_their_directories(tmp_path: Path, records: Database) -> None:
    pool = MoverPool(tmp_path, records)
    process = child(pool, "p")
    place = process.socket.parent
    assert place.exists()
    pool.close()
    assert not process.alive
    assert not place.exists()


def test_a_proxy_that_does_not_start_is_an_error_and_is_tried_again(
    tmp_path: Path, records: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = MoverPool(tmp_path, records)
    monkeypatch.setattr("understudy.mover.process.sys.executable", "/bin/false")
    with pytest.raises(MoverError, match=r"start proxy 'p': it ended with status 1; see .*proxy-p\.log"):
        pool.get("p")
    monkeypatch.undo()
    assert who(pool.get("p")).name == "p"
    pool.close()


def test_a_child_keeps_its_identity_for_ever(pool: MoverPool, records: Database, tmp_path: Path) -> None:
    first = who(pool.get("p")).identity
    recorded = catalog.get_proxy(records, "p")
    assert first == recorded.identity
    assert first.startswith("proxy-")
    assert recorded.certificate_expires
    again = MoverPool(tmp_path, records)
    assert who(again.get("p")).identity == first
    assert who(again.get("one")).identity != first
    again.close()


def test_only_the_child_of_the_controller_takes_data_from_other_hosts(
    pool: MoverPool, records: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening: list[str] = []

    class Process:
        alive = True

        def __init__(self, *arguments: object) -> None:
            listening.append(str(arguments[-1]))

        def close(self) -> None:
            pass

    monkeypatch.setattr(movers, "MoverProcess", Process)
    for name, address in (("one", "kvm2:7400"), ("two", "127.0.0.1:7401")):
        change_proxy(records, name, ProxyChange(data_address=address))
    pool.start("one").result()
    assert listening == [""]
    with lock.try_acquire(tmp_path) or pytest.fail("somebody else is the controller"):
        again = MoverPool(tmp_path, records)
        for name in ("one", "two", "p"):
            again.start(name).result()
        again.close()
    assert listening[1:] == [":7400", "127.0.0.1:7401", ""]
