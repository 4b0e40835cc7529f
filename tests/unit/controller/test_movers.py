"""Proxies of this machine: one process for each name, never two in one place, started again when dead."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.context import Context
from understudy.controller import movers
from understudy.controller.movers import MoverPool
from understudy.errors import MoverError
from understudy.mover.api import About, MoverInfo
from understudy.mover.client import MoverClient


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[MoverPool]:
    made = MoverPool(tmp_path)
    yield made
    made.close()


def who(client: MoverClient) -> MoverInfo:
    return client.call(About(), MoverInfo)


def test_two_proxies_that_start_at_once_live_in_two_places(pool: MoverPool, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Path] = []
    both = threading.Barrier(2)

    class Process:
        """Stands for a child that takes its directory late, as on a busy machine."""

        alive = True

        def __init__(self, name: str, run_dir: Path, state_dir: Path, log: Path) -> None:
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
    first, again, other = who(pool.get("a/b")), who(pool.get("a/b")), who(pool.get("c d"))
    assert (first.name, other.name) == ("a/b", "c d")
    assert first.pid == again.pid
    assert first.pid not in (other.pid, os.getpid())
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"proxy-a%2Fb.log", "proxy-c d.log"}


def test_a_proxy_that_died_is_started_again_when_it_is_asked_for(pool: MoverPool) -> None:
    process = pool.start("p").result()
    os.kill(process.pid, signal.SIGKILL)
    assert Context().wait_until(lambda: not process.alive, timeout_s=20)
    assert who(pool.get("p")).pid != process.pid


def test_closing_ends_every_proxy_and_removes_their_directories(tmp_path: Path) -> None:
    pool = MoverPool(tmp_path)
    process = pool.start("p").result()
    place = process.socket.parent
    assert place.exists()
    pool.close()
    assert not process.alive
    assert not place.exists()


def test_a_proxy_that_does_not_start_is_an_error_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = MoverPool(tmp_path)
    monkeypatch.setattr("understudy.mover.process.sys.executable", "/bin/false")
    with pytest.raises(MoverError, match=r"start proxy 'p': it ended with status 1; see .*proxy-p\.log"):
        pool.get("p")
    monkeypatch.undo()
    assert who(pool.get("p")).name == "p"
    pool.close()
