"""Context and fault points: cancelling reaches every waiter, and fault points do nothing unless they are named."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from understudy.context import CancelToken, Context
from understudy.errors import Cancelled, UnderstudyError
from understudy.faults import RELEASE_VARIABLE, VARIABLE, fault_point


def test_a_check_passes_until_the_operator_cancels() -> None:
    ctx = Context()
    ctx.check()
    ctx.cancel.cancel()
    ctx.cancel.cancel()
    with pytest.raises(Cancelled):
        ctx.check()


def test_waiting_ends_when_the_condition_holds_or_the_time_is_over() -> None:
    answers = iter([False, False, True])
    assert Context().wait_until(lambda: next(answers), timeout_s=5, interval_s=0.001)
    assert not Context().wait_until(lambda: False, timeout_s=0.01, interval_s=0.005)


def test_a_cancellation_ends_a_long_wait_at_once() -> None:
    ctx = Context()
    threading.Timer(0.05, ctx.cancel.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        ctx.wait_until(lambda: False, timeout_s=60, interval_s=30)
    assert time.monotonic() - started < 20


def test_a_token_tells_a_waiter_whether_it_was_cancelled() -> None:
    token = CancelToken()
    assert not token.wait(0.001)
    token.cancel()
    assert token.wait(60)


def test_log_lines_begin_with_the_fields_of_the_context(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Context(fields={"session": 7, "vm": "web 1"}).log("understudy.test").warning("read %s", "vda")
        Context().log("understudy.test").warning("bare")
    assert [record.getMessage() for record in caplog.records] == ["session=7 vm=web 1 read vda", "bare"]


def test_a_fault_point_acts_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    fault_point("read.middle")
    monkeypatch.setenv(VARIABLE, "other=kill,read.middle=error")
    with pytest.raises(UnderstudyError, match=r"fault point read\.middle"):
        fault_point("read.middle")
    fault_point("read")
    fault_point("read.middle.more")
    monkeypatch.setenv(VARIABLE, "read.middle=dance")
    with pytest.raises(UnderstudyError, match="unknown act 'dance'"):
        fault_point("read.middle")


def test_a_stalled_fault_point_says_so_and_waits_for_its_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release = tmp_path / "go"
    monkeypatch.setenv(VARIABLE, "here=stall")
    monkeypatch.setenv(RELEASE_VARIABLE, str(release))
    thread = threading.Thread(target=fault_point, args=("here",))
    thread.start()
    try:
        assert Context().wait_until((tmp_path / "go.reached").exists, timeout_s=10)
        thread.join(0.1)
        assert thread.is_alive()
    finally:
        release.touch()
        thread.join(10)
    assert not thread.is_alive()


def test_the_kill_of_a_fault_point_is_a_crash() -> None:
    code = "from understudy.faults import fault_point; fault_point('x')"
    env = {**os.environ, VARIABLE: "x=kill"}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=env).returncode == -signal.SIGKILL
