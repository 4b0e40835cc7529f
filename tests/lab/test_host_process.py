"""Programs on a lab host: known, signalled and ended from outside."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

import understudy
from understudy.lab.errors import CommandFailed, LabError, LabTimeout, LabUnavailable
from understudy.lab.lab import Lab

pytestmark = pytest.mark.system

_COUNT = "import itertools, time\nfor i in itertools.count(): print('line', i, flush=True); time.sleep(0.01)"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "program.log"


def test_a_program_runs_on_its_host_and_its_pid_is_its_own(lab: Lab, log: Path) -> None:
    script = "import os, socket; print('here', os.getpid(), socket.gethostname(), flush=True); input()"
    program = lab.beta.start_process([sys.executable, "-c", script], log=log)
    _, inner_pid, hostname = program.await_line("here").split()
    assert hostname == "beta"
    assert {m.inner_pid for m in lab.beta.processes() if m.pid == program.pid} == {int(inner_pid)}
    assert Path(f"/proc/{program.pid}/cmdline").read_bytes().split(b"\0")[0] == sys.executable.encode()
    program.kill()
    assert program.wait(10) == -signal.SIGKILL
    assert not program.alive


def test_a_program_is_asked_to_end_and_its_status_is_told(lab: Lab, log: Path) -> None:
    script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True)"
    program = lab.alpha.start_process([sys.executable, "-c", f"{script}; time.sleep(600)"], log=log)
    program.await_line("up")
    with pytest.raises(LabTimeout):
        program.wait(0.1)
    program.terminate()
    assert program.wait(10) == 7
    program.kill()


def test_a_stopped_program_stands_still_until_it_goes_on(lab: Lab, log: Path) -> None:
    program = lab.alpha.start_process([sys.executable, "-c", _COUNT], log=log)
    program.await_line("line")
    program.stop()
    _await_state(program.pid, "T")
    size = log.stat().st_size
    time.sleep(0.2)
    assert log.stat().st_size == size
    assert program.alive
    program.cont()
    deadline = time.monotonic() + 10
    while log.stat().st_size == size:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    program.stop()
    program.kill()
    assert program.wait(10) == -signal.SIGKILL


def _await_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + 10
    while f"State:\t{state}" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_program_that_ends_before_its_line_tells_its_last_words(lab: Lab, log: Path) -> None:
    program = lab.alpha.start_process([sys.executable, "-c", "raise SystemExit('no such store')"], log=log)
    with pytest.raises(LabError, match="no such store"):
        program.await_line("ready")


def test_a_program_that_does_not_exist_is_refused(lab: Lab, log: Path) -> None:
    with pytest.raises(LabUnavailable, match="no-such-program"):
        lab.alpha.start_process(["no-such-program"], log=log)


def test_the_source_tree_and_the_given_environment_reach_a_program(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Path(understudy.__file__).parents[1]
    monkeypatch.chdir(tree)
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.setenv("UNDERSTUDY_HOME", "/nowhere")
    script = "import os, understudy; print(understudy.__file__, os.environ.get('UNDERSTUDY_HOME'), os.environ['EXTRA'])"
    words = lab.alpha.run([sys.executable, "-c", script], env={"EXTRA": "1"}).split()
    assert words == [understudy.__file__, "None", "1"]


def test_a_failing_program_tells_its_words_and_one_that_hangs_is_killed_with_its_children(lab: Lab) -> None:
    with pytest.raises(CommandFailed, match="No such file"):
        lab.alpha.run(["ls", "/nowhere"])
    before = {member.pid for member in lab.alpha.processes()}
    with pytest.raises(LabTimeout):
        lab.alpha.run(["sh", "-c", "sleep 600 & sleep 600"], timeout_s=0.5)
    deadline = time.monotonic() + 10
    while {member.pid for member in lab.alpha.processes()} - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
