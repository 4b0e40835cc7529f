"""Survey process: a child without rights that looks into the volumes of disks, started, watched and ended from here."""

from __future__ import annotations

import selectors
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO

from understudy.certificates import Credentials
from understudy.context import Context
from understudy.errors import TransferError, UsageError
from understudy.model.exclusion import DiskSurvey
from understudy.mover.api import SurveyDisks, SurveyedDisks
from understudy.mover.protocol import decode, encode
from understudy.units import MIB

TIMEOUT_S = 270.0
#: Ranges are packed, and there are at most so many of them for each disk.
MOST_ANSWER = 64 * MIB
_PIECE = MIB
_POLL_S = 0.2
_WHAT = "look into the volumes"
_MODULE = "understudy.mover.survey_child"


def survey_disks(
    ctx: Context, request: SurveyDisks, credentials: Credentials | None, *, timeout_s: float = TIMEOUT_S,
    module: str = _MODULE,
) -> tuple[DiskSurvey, ...]:
    """What can be left out of disks, as the child found it.

    :param module: what the child runs.
    :raises Cancelled: if the operator asked for the end.
    :raises TransferError: if the child failed, was ended by a limit, or did not end in time.
    """
    command = [sys.executable, "-m", module, *([str(credentials.directory)] if credentials else [])]
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said:
        asked.write(encode(request))
        asked.seek(0)
        try:
            child = subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE, stderr=said, start_new_session=True)
        except OSError as exc:
            raise TransferError(_WHAT, f"no process can be started: {exc.strerror or exc}") from exc
        try:
            answer = _answer(ctx, child, time.monotonic() + timeout_s)
            status = child.wait(max(1.0, timeout_s / 10))
        except subprocess.TimeoutExpired as exc:
            raise TransferError(_WHAT, "the process does not end") from exc
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        if status:
            raise TransferError(_WHAT, _reason(status, said))
    try:
        return decode(SurveyedDisks, answer).surveys
    except UsageError as exc:
        raise TransferError(_WHAT, "the process gave no answer that can be understood") from exc


def _answer(ctx: Context, child: subprocess.Popen[bytes], deadline: float) -> bytes:
    assert child.stdout is not None
    answer = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            ctx.check()
            if time.monotonic() > deadline:
                raise TransferError(_WHAT, "it took too long")
            if not selector.select(_POLL_S):
                continue
            piece = child.stdout.read1(_PIECE)  # type: ignore[attr-defined]
            if not piece:
                return bytes(answer)
            answer += piece
            if len(answer) > MOST_ANSWER:
                raise TransferError(_WHAT, "the answer is too long")


def _reason(status: int, said: IO[bytes]) -> str:
    """Why the child failed; the last line that it wrote tells most."""
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    said.seek(0)
    lines = said.read(64 * 1024).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"the process ended with status {status}")
