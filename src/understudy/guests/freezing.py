"""Quiescing a guest around the source snapshot: freeze, the snapshot, thaw - with a deadline that always holds."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from understudy.errors import GuestError
from understudy.model.guest import ApplicationResult, GuestPolicy

#: The deadline of a Windows guest. Before anything is frozen its agent prepares the writers of VSS, which may take long
#: and holds up nobody; from the freeze on VSS itself thaws after 10 s, and the agent's answer to the thaw says so.
VSS_DEADLINE_S = 60.0
#: A freeze that has less time than this is not begun.
_LEAST_S = 2.0
_CLOSE_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 15.0


class FileSystems(Protocol):
    """How the file systems of a guest are frozen and thawed; both raise :class:`GuestError`."""

    def freeze(self, timeout_s: float) -> int:
        """Freeze all file systems; how many."""

    def thaw(self, timeout_s: float) -> int:
        """Thaw all file systems; how many were frozen until now."""


class ThawWatch(Protocol):
    """Thaws a guest when we do not."""

    def ready(self) -> None:
        """Wait until it can do so; before anything is frozen.

        :raises GuestError: if it cannot.
        """

    def arm(self, seconds: float) -> None:
        """From now on the guest is thawed after ``seconds`` at the latest.

        :raises GuestError: if that cannot be made sure.
        """

    def disarm(self) -> bool:
        """The guest is thawed; whether we did it, and not the watchdog."""


@dataclass
class Quiescing:
    """What guest processing achieved; complete when its context is left."""

    frozen: bool = False
    frozen_ms: float | None = None
    application_consistent: bool = False
    applications: tuple[ApplicationResult, ...] = ()
    warnings: list[str] = field(default_factory=list)


class Watchdog:
    """The watchdog process of one guest; see :mod:`understudy.guests.watchdog`. Start early: it takes a moment."""

    def __init__(self, uri: str, uuid: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "understudy.guests.watchdog", uri, uuid],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )
        self._ready = False

    def ready(self) -> None:
        """Wait until it has found the VM.

        :raises GuestError: if it has not.
        """
        self._ready = self._ready or self._answer() == "ready"
        if not self._ready:
            raise GuestError("thaw watchdog", "it could not reach the VM")

    def arm(self, seconds: float) -> None:
        """From now on the guest is thawed after ``seconds``, or as soon as this process is dead.

        :raises GuestError: if the watchdog did not get ready.
        """
        self.ready()
        self._say(f"armed {seconds}")

    def disarm(self) -> bool:
        """The guest is thawed; True if the watchdog had not fired before."""
        with contextlib.suppress(GuestError):  # it ended because it fired; its answer is still to be read
            self._say("disarm")
        return self._answer() == "disarmed"

    def close(self) -> None:
        """Let go of it; if it is still armed it thaws the guest by itself, however long that takes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it fired and is gone
            self._process.stdin.close()
        self._process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_CLOSE_TIMEOUT_S)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise GuestError("thaw watchdog", "it ended unexpectedly") from exc

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _ANSWER_TIMEOUT_S)[0]:
            return ""
        return self._process.stdout.readline().strip()


@dataclass(frozen=True)
class _Thawed:
    """A thaw that worked: after how long, and whether file systems were frozen until then by our freeze."""

    after_ms: float
    in_time: bool


class Quiesced:
    """Context in which the guest is frozen; take the snapshot inside it.

    With ``require``, a guest that cannot be frozen, or that was thawed before the snapshot was complete, is an error;
    with ``try`` it is a warning and the point is crash-consistent.
    """

    def __init__(
        self,
        transport: FileSystems,
        watchdog: ThawWatch,
        policy: GuestPolicy,
        record: Callable[[bool], None],
        deadline_s: float,
        since: float | None = None,
    ) -> None:
        """``record(True)`` is called before the freeze and must be durable; ``record(False)`` after the thaw.

        :param since: when something in the guest was frozen first, by the monotonic clock; the deadline counts from
            there. None: nothing was.
        """
        self._transport = transport
        self._watchdog = watchdog
        self._policy = policy
        self._record = record
        self._deadline_s = deadline_s
        self._since = since
        self._started = 0.0
        self.result = Quiescing()

    def __enter__(self) -> Quiescing:
        self._record(True)
        try:
            self._arm()
        except GuestError as exc:
            self._record(False)  # nothing was frozen: without a watchdog nothing may be
            self._not_quiesced(exc)
            return self.result
        self._started = time.monotonic()
        try:
            count = self._transport.freeze(self._deadline_s / 2)
            if count == 0:
                raise GuestError("freeze", "the guest agent froze no file system")
            if time.monotonic() - self._started >= self._deadline_s:
                # The watchdog may have come before it.
                raise GuestError("freeze", "it was done only after the deadline")
            self.result.frozen = True
        except GuestError as exc:
            # The agent may have frozen some of them, or all of them after we gave up waiting.
            self._thaw()
            self._not_quiesced(exc)
        return self.result

    def _arm(self) -> None:
        """Arm the watchdog for what is left of the time."""
        if self._since is not None:
            self._deadline_s -= time.monotonic() - self._since
        if self._deadline_s < _LEAST_S:
            raise GuestError("freeze", "what came before it left no time")
        self._watchdog.arm(self._deadline_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.result.frozen:
            return
        thawed = self._thaw()
        if thawed:
            self.result.frozen_ms = round(thawed.after_ms, 1)
        if not (thawed and thawed.in_time):
            self.result.frozen = False
            if kind is None:
                why = "it was thawed before the snapshot was complete" if thawed else "it could not be thawed in order"
                self._not_quiesced(GuestError("freeze", f"the guest was not kept frozen for certain: {why}"))

    def _thaw(self) -> _Thawed | None:
        """Thaw now; None if the agent refuses, and then the watchdog goes on trying until it works."""
        try:
            count = self._transport.thaw(max(1.0, self._deadline_s / 2))
            after_ms = (time.monotonic() - self._started) * 1000
            in_time = self._watchdog.disarm() and count > 0
            self._record(False)
        except GuestError as exc:
            self.result.warnings.append(f"{exc}; the watchdog goes on trying to thaw the guest")
            return None
        return _Thawed(after_ms, in_time)

    def _not_quiesced(self, error: GuestError) -> None:
        if self._policy is GuestPolicy.REQUIRE:
            todo = "check the guest agent, or use --guest-processing try"
            raise GuestError("guest processing", str(error), todo) from error
        self.result.warnings.append(f"guest processing failed, the restore point is crash-consistent: {error}")
