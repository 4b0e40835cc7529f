"""The controller lock: one process, known by its number, free when the process is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from understudy.controller import lock
from understudy.errors import DatabaseError

HOLD = (
    "import sys, time; from pathlib import Path; from understudy.controller.lock import try_acquire;"
    "held = try_acquire(Path(sys.argv[1])); print(held is not None, flush=True); time.sleep(60)"
)


def test_the_lock_is_given_once_and_again_after_release(tmp_path: Path) -> None:
    assert lock.holder(tmp_path) is None
    held = lock.try_acquire(tmp_path)
    assert held is not None
    assert lock.try_acquire(tmp_path) is None
    assert lock.holder(tmp_path) == os.getpid()
    held.release()
    held.release()
    assert lock.holder(tmp_path) is None
    with lock.try_acquire(tmp_path) or pytest.fail("not free"):
        assert lock.holder(tmp_path) == os.getpid()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert lock.holder(tmp_path) == process.pid
        assert lock.try_acquire(tmp_path) is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lock.holder(tmp_path) is None
    held = lock.try_acquire(tmp_path)
    assert held is not None
    held.release()


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    held = lock.try_acquire(tmp_path)
    assert held is not None
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        held.release()
        assert lock.holder(tmp_path) is None
        child.kill()


def test_asking_who_holds_it_never_keeps_anyone_from_it(tmp_path: Path) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            lock.holder(tmp_path)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            held = lock.try_acquire(tmp_path)
            assert held is not None
            held.release()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_missing_home_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"open .*controller.lock: No such file or directory; check --home"):
        lock.try_acquire(tmp_path / "nowhere")
