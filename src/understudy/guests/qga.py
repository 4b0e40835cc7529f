"""The way into a guest by its QEMU guest agent: programs are started and polled, files are written in pieces."""

from __future__ import annotations

import base64
import binascii
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from understudy.errors import GuestError, UnderstudyError
from understudy.guests.transport import OUTPUT_LIMIT, Completed, go_on
from understudy.model.guest import GuestSystem, GuestTransport

LOG = logging.getLogger(__name__)

#: ``agent(command, arguments, timeout_s)``: what the agent returns; raises :class:`GuestError`.
AgentCommand = Callable[[str, Mapping[str, Any], float], Any]

NEEDED = ("guest-exec", "guest-exec-status", "guest-file-open", "guest-file-write", "guest-file-close")
# libvirt 9.0 never finishes sending 512 KiB of data in base64.
PIECE = 128 << 10
_ANSWER_S = 5.0
_KILL_S = 2.0
_KILL_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.25


class QgaTransport:
    """Implements :class:`understudy.guests.transport.Transport` over the agent's documented commands."""

    kind = GuestTransport.QGA

    def __init__(self, agent: AgentCommand) -> None:
        """:raises GuestError: if the agent does not answer, or the guest does not allow what is needed."""
        self._agent = agent
        enabled = enabled_commands(agent)
        if blocked := [name for name in NEEDED if name not in enabled]:
            raise GuestError("guest agent", f"the guest does not allow {', '.join(blocked)}",
                             "allow it in the configuration of qemu-guest-agent in the guest, or use SSH")
        self.system = _system(agent, enabled)

    def run(
        self, argv: Sequence[str], timeout_s: float, stdin: bytes = b"", check: Callable[[], object] = go_on
    ) -> Completed:
        """Start it, and ask for its end until it came; after the time limit it is killed."""
        deadline = time.monotonic() + timeout_s
        request: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            request["input-data"] = base64.b64encode(stdin).decode("ascii")
        pid = _whole(_field(self._agent("guest-exec", request, _within(deadline)), "pid"))
        try:
            return self._await(pid, argv, timeout_s, deadline, check)
        except BaseException:
            self._kill(pid)
            raise

    def run_pair(
        self, first: Sequence[str], second: Sequence[str], timeout_s: float
    ) -> tuple[Completed, Callable[[float], Completed]]:
        """One after the other: the agent is in the guest already."""
        return self.run(first, timeout_s), functools.partial(self.run, second)

    def _await(
        self, pid: int, argv: Sequence[str], timeout_s: float, deadline: float, check: Callable[[], object]
    ) -> Completed:
        pause_s = 0.01
        while True:
            status = self._agent("guest-exec-status", {"pid": pid}, _within(deadline))
            if _field(status, "exited"):
                return _completed(status)
            check()
            if time.monotonic() >= deadline:
                raise GuestError(f"run {argv[0]} in the guest", f"it did not end within {timeout_s:g} s")
            time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def _kill(self, pid: int) -> None:
        """End it, and ask for its end, until which the agent keeps it and its output in mind."""
        deadline = time.monotonic() + _KILL_S
        try:
            killer = self._agent("guest-exec", _kill_request(self.system, pid), _within(deadline))
            for number in (_whole(_field(killer, "pid")), pid):
                while not _field(self._agent("guest-exec-status", {"pid": number}, _within(deadline)), "exited"):
                    if time.monotonic() >= deadline:
                        raise GuestError(f"process {number} in the guest", "it did not end")
                    time.sleep(_KILL_PAUSE_S)
        except UnderstudyError as exc:  # it hides why the program is to end
            LOG.warning("end process %d in the guest: %s", pid, exc)

    def put(self, path: str, content: bytes, mode: int, timeout_s: float) -> None:
        """Write it in pieces; the agent makes files that everybody may write to, so the mode comes first."""
        deadline = time.monotonic() + timeout_s
        handle = _whole(self._agent("guest-file-open", {"path": path, "mode": "w"}, _within(deadline)))
        try:
            if self.system is GuestSystem.POSIX:
                self._must(["/bin/chmod", f"{mode:o}", path], deadline)
            for start in range(0, len(content), PIECE):
                self._write(path, handle, content[start : start + PIECE], deadline)
        except BaseException:
            self._abandon(path, handle)
            raise
        # What the agent still holds of it is written now: this may fail as a write does.
        self._agent("guest-file-close", {"handle": handle}, _ANSWER_S)

    def _write(self, path: str, handle: int, piece: bytes, deadline: float) -> None:
        while piece:
            if time.monotonic() >= deadline:
                raise GuestError(f"write {path} in the guest", "it was not written in time")
            data = {"handle": handle, "buf-b64": base64.b64encode(piece).decode("ascii")}
            written = _whole(_field(self._agent("guest-file-write", data, _within(deadline)), "count"))
            if not 0 < written <= len(piece):
                raise GuestError(f"write {path} in the guest", f"{written} of {len(piece)} bytes were written",
                                 "check the room on the guest's file systems")
            piece = piece[written:]

    def _abandon(self, path: str, handle: int) -> None:
        try:
            self._agent("guest-file-close", {"handle": handle}, _ANSWER_S)
        except UnderstudyError as exc:  # it hides why the file was not written
            LOG.warning("close %s in the guest: %s", path, exc)

    def close(self) -> None:
        """There is nothing to close: each command is a request of its own."""

    def _must(self, argv: Sequence[str], deadline: float) -> None:
        done = self.run(argv, max(0.0, deadline - time.monotonic()))
        if done.status != 0:
            raise GuestError(f"{' '.join(argv)} in the guest", done.stderr.decode(errors="replace").strip())


def enabled_commands(agent: AgentCommand) -> frozenset[str]:
    """The commands that an agent obeys.

    :raises GuestError: if it does not answer.
    """
    commands = _field(agent("guest-info", {}, _ANSWER_S), "supported_commands")
    if not isinstance(commands, list):
        raise GuestError("guest agent", "it does not say which commands it has")
    return frozenset(str(_field(item, "name")) for item in commands if _field(item, "enabled"))


def guest_system(agent: AgentCommand) -> GuestSystem:
    """The kind of guest; of one that does not answer nothing is assumed."""
    try:
        return _system(agent, enabled_commands(agent))
    except UnderstudyError as exc:  # whoever needs the agent will hear it
        LOG.info("%s", exc)
        return GuestSystem.POSIX


def _system(agent: AgentCommand, enabled: frozenset[str]) -> GuestSystem:
    told = agent("guest-get-osinfo", {}, _ANSWER_S) if "guest-get-osinfo" in enabled else {}
    # The agent for Windows gives this very word.
    return GuestSystem.WINDOWS if isinstance(told, dict) and told.get("id") == "mswindows" else GuestSystem.POSIX


def _kill_request(system: GuestSystem, pid: int) -> dict[str, Any]:
    if system is GuestSystem.WINDOWS:
        return {"path": "taskkill.exe", "arg": ["/T", "/F", "/PID", str(pid)]}
    return {"path": "/bin/sh", "arg": ["-c", f"kill -9 {pid}"]}


def _within(deadline: float) -> float:
    return min(_ANSWER_S, max(1.0, deadline - time.monotonic()))


def _field(answer: object, name: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        raise GuestError("guest agent", f"its answer has no {name!r}")
    return answer[name]


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise GuestError("guest agent", f"it answered {value!r:.40} instead of a number")
    return value


def _completed(status: dict[str, Any]) -> Completed:
    # Windows has no signals: the agent tells an exception of NT as one, which is below zero by itself.
    ended = status.get("exitcode", -abs(_whole(status.get("signal", 0))))
    try:
        stdout, stderr = (base64.b64decode(status.get(key, ""))[:OUTPUT_LIMIT] for key in ("out-data", "err-data"))
    except (binascii.Error, TypeError, ValueError) as exc:
        raise GuestError("guest agent", "the output of a program is not base64") from exc
    return Completed(_whole(ended), stdout, stderr)
