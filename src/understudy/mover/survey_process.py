"""Survey process: a child without rights that looks into the volumes of disks, started, watched and ended from here."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from understudy.certificates import Credentials
from understudy.context import Context
from understudy.errors import TransferError, UsageError
from understudy.model.exclusion import DiskSurvey
from understudy.mover.api import SurveyDisks, SurveyedDisks
from understudy.mover.protocol import decode, encode
from understudy.mover.survey_answer import checked
from understudy.units import KIB, MIB

TIMEOUT_S = 270.0
#: Ranges are packed, and there are at most so many of them for each disk.
MOST_ANSWER = 64 * MIB
#: Of what the child says about itself, the end is kept.
_MOST_SAID = 64 * KIB
_LONGEST_REASON = 500
_PIECE = MIB
_POLL_S = 0.2
_WHAT = "look into the volumes"
_MODULE = "understudy.mover.survey_child"
#: Nothing else of our environment is the child's business.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR")


def survey_disks(
    ctx: Context, request: SurveyDisks, credentials: Credentials | None, *, timeout_s: float = TIMEOUT_S,
    module: str = _MODULE,
) -> tuple[DiskSurvey, ...]:
    """What can be left out of disks, as the child found it.

    :param module: what the child runs; tests put a hostile one there, requests cannot.
    :raises Cancelled: if the operator asked for the end.
    :raises TransferError: if the child failed, was ended by a limit, did not end in time, or gave an answer that breaks
        a rule.
    """
    command = [sys.executable, "-m", module, *([str(credentials.directory)] if credentials else [])]
    env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    with tempfile.TemporaryFile() as asked:
        asked.write(encode(request))
        asked.seek(0)
        try:
            child = subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
                                     start_new_session=True)  # fmt: skip
        except OSError as exc:
            raise TransferError(_WHAT, f"no process can be started: {exc.strerror or exc}") from exc
    with child:
        try:
            answer, said = _answer(ctx, child, time.monotonic() + timeout_s)
            status = child.wait(max(1.0, timeout_s / 10))
        except subprocess.TimeoutExpired as exc:
            raise TransferError(_WHAT, "the process does not end") from exc
        finally:
            child.kill()
    if status:
        raise TransferError(_WHAT, _reason(status, said))
    try:
        surveys = decode(SurveyedDisks, answer).surveys
    except UsageError as exc:
        raise TransferError(_WHAT, "the process gave no answer that can be understood") from exc
    return checked(surveys, request.disks)


def _answer(ctx: Context, child: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
    """Standard output of the child, and the end of its standard error."""
    answer, said = bytearray(), bytearray()
    for stream, piece in _pieces(ctx, child, deadline):
        if stream is child.stderr:
            said = (said + piece)[-_MOST_SAID:]
            continue
        answer += piece
        if len(answer) > MOST_ANSWER:
            raise TransferError(_WHAT, "the answer is too long")
    return bytes(answer), bytes(said)


def _pieces(ctx: Context, child: subprocess.Popen[bytes], deadline: float) -> Iterator[tuple[object, bytes]]:
    """What the child writes, and where, until it closed both streams."""
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ctx.check()
            if time.monotonic() > deadline:
                raise TransferError(_WHAT, "it took too long")
            for key, _ in selector.select(_POLL_S):
                piece = os.read(key.fd, _PIECE)
                if piece:
                    yield key.fileobj, piece
                else:
                    selector.unregister(key.fileobj)


def _reason(status: int, said: bytes) -> str:
    """Why the child failed; the last line that it wrote tells most."""
    if status == -signal.SIGXCPU:
        return "it took too much time of the processor"
    if status < 0:
        return f"the process was ended by signal {-status} ({signal.strsignal(-status)})"
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    return next((line[:_LONGEST_REASON] for line in reversed(lines) if line), f"the process ended with status {status}")
