"""The thaw watchdog as a real process, with a ``libvirt`` module of ours before the real one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import understudy
from understudy.errors import GuestError
from understudy.guests.freezing import Watchdog

pytestmark = pytest.mark.timeout(120)

# Each call is a line in CALLS; REFUSALS thaws fail first; DOMAIN says whether the VM runs, or is unknown. While the
# file DOWN exists the daemon is dead; a connection from before stays dead.
STUB = '''
import os
LOG = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_APPEND)
VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK = -2
class libvirtError(Exception): pass
def note(text):
    os.write(LOG, (text + "\\n").encode())
def registerErrorHandler(handler, context): pass
def down():
    return os.path.exists(os.environ.get("DOWN", ""))
class Domain:
    thaws = 0
    dead = False
    def agentSetResponseTimeout(self, seconds, flags): note(f"timeout {seconds}")
    def isActive(self): return os.environ.get("DOMAIN") != "off"
    def fsThaw(self):
        self.dead = self.dead or down()
        if self.dead:
            note("dead")
            raise libvirtError("connection lost")
        Domain.thaws += 1
        if Domain.thaws <= int(os.environ.get("REFUSALS", "0")):
            note("refused")
            raise libvirtError("agent busy")
        note("thawed")
        return 2
class Connection:
    def lookupByUUIDString(self, uuid):
        note(f"found {uuid}")
        if os.environ.get("DOMAIN") == "unknown": raise libvirtError("no domain")
        return Domain()
def open(uri):
    if down(): raise libvirtError("no daemon")
    note(f"opened {uri}")
    return Connection()
'''

Reader = Callable[[], list[str]]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """The calls so far; processes that a test starts get the stub."""
    (tmp_path / "libvirt.py").write_text(STUB)
    source = Path(understudy.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{source}")
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("CALLS", str(log))
    return lambda: log.read_text().splitlines()


@pytest.fixture
def process(calls: Reader) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts watchdogs to which a test speaks itself."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "understudy.guests.watchdog", "stub:///system", "uuid-1"]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def say(child: subprocess.Popen[str], words: str) -> None:
    assert child.stdin is not None
    child.stdin.write(words)
    child.stdin.flush()


def answer(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def wait_for(calls: Reader, line: str, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while line not in calls():
        assert time.monotonic() < end, f"no {line!r} in {calls()}"
        time.sleep(0.02)


Start = Callable[[], subprocess.Popen[str]]


def test_it_has_found_the_vm_before_it_says_that_it_is_ready(calls: Reader, process: Start) -> None:
    child = process()
    assert answer(child) == "ready\n"
    assert calls() == ["opened stub:///system", "found uuid-1"]


def test_armed_and_left_alone_by_a_dead_controller_it_thaws_at_once(calls: Reader, process: Start) -> None:
    child = process()
    answer(child)
    say(child, "armed 600\n")
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == 3
    assert calls()[2:] == ["timeout 5", "thawed", "timeout -2"]


def test_it_thaws_even_if_the_controller_died_before_the_words_were_read(calls: Reader, process: Start) -> None:
    child = process()
    say(child, "armed 600\n")
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == 3
    assert "thawed" in calls()


def test_at_the_deadline_it_thaws_and_says_that_it_fired(calls: Reader, process: Start) -> None:
    child = process()
    answer(child)
    started = time.monotonic()
    say(child, "armed 0.3\n")
    assert answer(child) == "fired\n"
    assert time.monotonic() - started >= 0.3
    assert child.wait(20) == 3
    assert "thawed" in calls()


def test_disarmed_it_ends_without_thawing(calls: Reader, process: Start) -> None:
    child = process()
    answer(child)
    say(child, "armed 600\n")
    say(child, "disarm\n")
    assert answer(child) == "disarmed\n"
    assert child.wait(20) == 0
    assert "thawed" not in calls()


def test_words_that_arrive_together_are_all_obeyed(calls: Reader, process: Start) -> None:
    child = process()
    say(child, "armed 5\ndisarm\n")
    assert answer(child) == "ready\n"
    assert answer(child) == "disarmed\n"
    assert child.wait(20) == 0
    assert "thawed" not in calls()


def test_words_that_arrive_in_pieces_are_understood(calls: Reader, process: Start) -> None:
    child = process()
    answer(child)
    for piece in ("arm", "ed 6", "00\ndis", "arm\n"):
        say(child, piece)
        time.sleep(0.1)
    assert answer(child) == "disarmed\n"
    assert "thawed" not in calls()


def test_never_armed_it_ends_with_its_controller_and_touches_nothing(calls: Reader, process: Start) -> None:
    child = process()
    answer(child)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == 0
    assert "thawed" not in calls()


def test_a_refused_thaw_is_tried_until_it_works(
    calls: Reader, process: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSALS", "2")
    child = process()
    answer(child)
    say(child, "armed 600\n")
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == 3
    assert [line for line in calls() if line in ("refused", "thawed")] == ["refused", "refused", "thawed"]


def test_a_guest_that_is_off_needs_no_thaw(calls: Reader, process: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSALS", "1000")
    monkeypatch.setenv("DOMAIN", "off")
    child = process()
    answer(child)
    say(child, "armed 0\n")
    assert answer(child) == "fired\n"
    assert calls().count("refused") == 1


# --- the controller's end ---------------------------------------------------------------------------------------------


def test_the_controller_arms_and_disarms_it(calls: Reader) -> None:
    watchdog = Watchdog("stub:///system", "uuid-1")
    watchdog.ready()
    assert calls() == ["opened stub:///system", "found uuid-1"]
    watchdog.ready()
    watchdog.arm(600)
    assert watchdog.disarm()
    watchdog.close()
    assert "thawed" not in calls()


def test_the_controller_learns_that_the_deadline_came_first(calls: Reader) -> None:
    watchdog = Watchdog("stub:///system", "uuid-1")
    watchdog.arm(0.05)
    wait_for(calls, "thawed")
    assert not watchdog.disarm()
    watchdog.close()


def test_closing_it_while_armed_thaws_the_guest(calls: Reader) -> None:
    watchdog = Watchdog("stub:///system", "uuid-1")
    watchdog.arm(600)
    watchdog.close()
    wait_for(calls, "thawed")


def test_a_vm_that_it_cannot_reach_is_told_before_anything_is_frozen(
    calls: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMAIN", "unknown")
    watchdog = Watchdog("stub:///system", "uuid-1")
    with pytest.raises(GuestError, match="thaw watchdog: it could not reach the VM"):
        watchdog.arm(5)
    assert not watchdog.disarm()
    watchdog.close()


def test_it_thaws_by_another_connection_when_the_daemon_died_and_came_back(
    calls: Reader, process: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = tmp_path / "down"
    monkeypatch.setenv("DOWN", str(down))
    child = process()
    assert answer(child) == "ready\n"
    say(child, "armed 60\n")
    down.touch()
    assert child.stdin is not None
    child.stdin.close()
    wait_for(calls, "dead")
    down.unlink()
    wait_for(calls, "thawed")
    assert child.wait(20) == 3
