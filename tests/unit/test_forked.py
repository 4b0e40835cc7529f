"""A command that is forked is the command that a shell would start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import forked as forked_module
from tests.system.forked import Forks
from understudy.mover import process
from understudy.mover.process import MoverProcess


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "understudy", *arguments]


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "UNDERSTUDY_HOME": str(home)}


@pytest.mark.parametrize("arguments", [("version",), ("--json", "job", "list"), ("nonsense",), ("job", "show", "none")])
def test_it_says_and_ends_as_one_that_was_started(forks: Forks, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    environment = _environment(tmp_path)
    started = subprocess.run(_command(*arguments), env=environment, capture_output=True, text=True, check=False)
    forked = forks.start(_command(*arguments), environment)
    out, err = forked.communicate(60)
    assert (forked.wait(), out, err) == (started.returncode, started.stdout, started.stderr)


def test_it_has_its_own_environment(forks: Forks, tmp_path: Path) -> None:
    for name in ("one", "other"):
        forked = forks.start(_command("host", "list"), _environment(tmp_path / name))
        forked.communicate(60)
        assert forked.returncode == 0
        assert (tmp_path / name / "understudy.db").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_is_a_process_that_is_found_by_its_command_line_and_hears_signals(
    forks: Forks, tmp_path: Path, number: signal.Signals
) -> None:
    nobody_writes = tmp_path / "key"
    os.mkfifo(nobody_writes)
    waits = _command("--home", str(tmp_path), "credential", "add", "nobody", "--key", str(nobody_writes))
    forked = forks.start(waits, _environment(tmp_path))
    with Path(f"/proc/{forked.pid}/cmdline").open("rb") as shown:
        assert shown.read().rstrip(b"\0").split(b"\0") == [os.fsencode(word) for word in waits]
    os.kill(forked.pid, signal.SIGSTOP)
    assert forked.poll() is None
    forked.send_signal(number)
    os.kill(forked.pid, signal.SIGCONT)
    _out, err = forked.communicate(60)
    assert forked.returncode == -number, err
    forked.kill()


def test_the_end_of_one_that_never_heard_that_it_may_begin_is_told(
    forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = forked_module._await_ready

    def stopped(outcome: socket.socket) -> int:
        pid = ready(outcome)
        os.kill(pid, signal.SIGSTOP)
        return pid

    monkeypatch.setattr(forked_module, "_await_ready", stopped)
    forked = forks.start(_command("version"), _environment(tmp_path))
    forked.kill()
    # Ended in the eyes of its server, too.
    while Path(f"/proc/{forked.pid}").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    forked.communicate(60)
    assert forked.returncode == -signal.SIGKILL


def test_a_proxy_is_a_fork_that_ends_with_its_standard_input(
    forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "spawn", forks.start_proxy)
    proxy = MoverProcess("forked", tmp_path / "run", tmp_path / "state", tmp_path / "log")
    assert proxy.info.pid == proxy.pid
    assert os.getsid(proxy.pid) == proxy.pid
    assert b"understudy.mover\0--socket" in Path(f"/proc/{proxy.pid}/cmdline").read_bytes()
    proxy.close()
    assert not proxy.alive
    assert not Path(f"/proc/{proxy.pid}").exists()
    assert "standard input ended" in (tmp_path / "log").read_text()
