"""Which process is this, and is it still that one? Signals reach only processes whose identity was checked."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that a reused pid cannot be mistaken for: pid, start time and the machine's boot."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of the process that has this pid now; None when there is none (a zombie counts as none)."""
        stat = _stat_of(pid)
        if stat is None or stat.state in "ZX":
            return None
        return cls(pid, stat.start_ticks, (_PROC / "sys/kernel/random/boot_id").read_text().strip())

    def alive(self) -> bool:
        """True while this very process runs."""
        return ProcessIdentity.of(self.pid) == self

    def session(self) -> int | None:
        """The session it belongs to (the pid of the session's leader); None when it has ended."""
        try:
            session = os.getsid(self.pid)
        except ProcessLookupError:
            return None
        return session if self.alive() else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process; does nothing when it has ended."""
        # A pidfd goes on meaning the process it was opened for, so the check and the signal see the same one.
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return
        finally:
            os.close(descriptor)

    def wait_end(self, timeout_s: float) -> bool:
        """Wait until this process has ended with all its threads, so that it holds no file any more.

        False when it still runs after timeout_s.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            # A zombie may be one thread that has ended before the others; the descriptor tells when all have.
            stat = _stat_of(self.pid)
            if stat is None or stat.start_ticks != self.start_ticks:
                return True
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class _Stat:
    """What proc(5) says of a process."""

    state: str
    start_ticks: int


def _stat_of(pid: int) -> _Stat | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in parentheses, may itself have spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[19]))


@dataclass(frozen=True)
class NamespaceMember:
    """A process seen from outside its pid namespace, with the pid that it has inside."""

    pid: int
    inner_pid: int
    command: str


def members_of(pid_namespace: int) -> Iterator[NamespaceMember]:
    """All processes of one pid namespace (given by the inode number of its namespace file)."""
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "ns/pid").stat().st_ino != pid_namespace:
                continue
            status = (entry / "status").read_text()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # It ended while we looked, or it is shielded even from root, as the first process of a container may be.
            continue
        inner = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
        yield NamespaceMember(int(entry.name), int(inner), command)
