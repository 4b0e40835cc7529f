"""A long-running program on a lab host, known from outside by the identity of the real process.

Between the lab and the program stand nsenter, which enters the namespaces, and a shell inside. The shell is there to
wait: nsenter would stop itself when the program is stopped, and not notice its end.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from understudy.lab.commands import find_program
from understudy.lab.errors import LabError, LabTimeout
from understudy.lab.namespaces import Namespaces
from understudy.lab.processes import ProcessIdentity

# The process tells its pid inside and becomes the program only when the lab has found it from outside.
_PROGRAM = 'echo $$; read -r go && exec "$@" >&2'
# Without a command after it the shell would become the process in place of waiting for it.
_WAITER = '"$@"; exit $?'
# A shell gives a death by signal as 128 + the signal's number.
_BY_SIGNAL = 128


class HostProcess:
    """A program that was started on a lab host; it ends with the host at the latest."""

    def __init__(
        self, namespaces: Namespaces, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        """Use `LabHost.start_process`."""
        self.command = tuple(command)
        self.log = log
        shells = ["sh", "-c", _WAITER, "sh", "sh", "-c", _PROGRAM, "sh"]
        argv = [find_program("nsenter"), *namespaces.enter_options(), *shells, find_program(command[0]), *command[1:]]
        with log.open("ab") as output:
            self._waiter = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                # The terminal's Ctrl-C is for the owner of the lab.
                start_new_session=True,
                env=environment,
            )
        self._identity = self._let_go(namespaces)

    def _let_go(self, namespaces: Namespaces) -> ProcessIdentity:
        """Find the process by the pid that it tells, and let it become the program."""
        stdin, stdout = self._waiter.stdin, self._waiter.stdout
        if stdin is None or stdout is None:
            raise LabError(f"start {self.command[0]}", "it was started without pipes")
        with stdout:
            answer = stdout.readline()
        identity = namespaces.find(int(answer)) if answer else None
        if identity is None:
            self.release()
            raise LabError(f"start {self.command[0]}", f"it ended at once; see {self.log}")
        stdin.write(b"go\n")
        stdin.flush()
        return identity

    @property
    def pid(self) -> int:
        """The pid of the program as seen from outside the host."""
        return self._identity.pid

    @property
    def alive(self) -> bool:
        """True while the program runs or is stopped."""
        return self._identity.alive()

    def kill(self) -> None:
        """Kill the program as a crash would; does nothing when it has ended, nor does any other signal here."""
        self._identity.signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the program to end."""
        self._identity.signal(signal.SIGTERM)

    def stop(self) -> None:
        """Freeze the program, as a host that hangs would; `cont` thaws it."""
        self._identity.signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let a stopped program go on."""
        self._identity.signal(signal.SIGCONT)

    def wait(self, timeout_s: float = 60) -> int:
        """Wait until the program has ended; its exit status, or the negative number of the signal that ended it."""
        try:
            status = self._waiter.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise LabTimeout(f"{self.command[0]} (pid {self.pid})", f"did not end within {timeout_s:g} s") from exc
        return _BY_SIGNAL - status if status > _BY_SIGNAL else status

    def await_line(self, start: str, timeout_s: float = 30) -> str:
        """Wait until the program has written a whole line that begins with `start`, and return the line.

        Raises LabError with the end of its log when the program ends before, LabTimeout when it writes no such line.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            # Asked before the log is read: the last words of a program are no less words.
            alive = self.alive
            lines = self.log.read_text(errors="replace").splitlines(keepends=True)
            found = next((line for line in lines if line.startswith(start) and line.endswith("\n")), None)
            if found is not None:
                return found.rstrip("\n")
            what, words = f"{self.command[0]} (pid {self.pid})", "".join(lines)[-500:]
            if not alive:
                raise LabError(what, f"ended without a line {start!r}: {words!r}")
            if time.monotonic() >= deadline:
                raise LabTimeout(what, f"no line {start!r} within {timeout_s:g} s: {words!r}")
            time.sleep(0.02)

    def release(self) -> None:
        """Let go of the program and wait until it has ended; for the end of its host."""
        if self._waiter.stdin is not None:
            self._waiter.stdin.close()
        self._waiter.wait(10)
