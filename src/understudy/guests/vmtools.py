"""The way into a guest by VMware Tools: programs are started and polled, what they read and write is in files there.

Guest operations give no streams. So each program runs under a few lines of shell, with its input and output in files of
a private directory: in memory, where there is one, for what is written while file systems are frozen must not wait for
the thaw.

Everything that is asked of Tools they do as the user who logs in, which may write: to their own log, or to those of the
guest's users. While file systems are frozen such a question may get no answer before the thaw. So what freezes runs
together with what thaws, in one process that is already there and waits for a file in memory; and if the guest cannot
be told that any more, its own watchdog thaws it at the deadline, then we get our answer, and it says so.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Sequence

from understudy.errors import GuestError, UnderstudyError
from understudy.guests.transport import OUTPUT_LIMIT, Completed, go_on
from understudy.model.guest import GuestSystem, GuestTransport
from understudy.model.guest_operations import GuestOperations

LOG = logging.getLogger(__name__)

SHELL = "/bin/sh"
#: In memory on every Linux of our days; who may write there cannot remove what others have made.
MEMORY = "/dev/shm"
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
_LONGEST_NUMBER = 16
_SIGN = b"go\n"

# What the last program left goes, and what dead sessions left a week ago. The files are made by the user himself, so
# that he can fetch them, also where sudo follows. `exec` keeps the number of the process.
_WRAPPER = """umask 077
cd /
directory=$1 base=$1/$2 last=$3
shift 3
if [ "$last" = 0 ]; then
    find "${directory%/*}" -maxdepth 1 -type d -name 'understudy-vmtools*' -user "$(id -u)" -mmin +10080 \\
        -exec rm -rf -- {} + 2>/dev/null
fi
rm -f -- "$directory/$last."*
[ -e "$base.in" ] || : >"$base.in"
: >"$base.out2" && : >"$base.err2" && : >"$base.first" || exit 125
echo $$ >"$base.pid"
exec "$@" <"$base.in" >"$base.out" 2>"$base.err"
"""
# One command, its status, a wait for the sign, or for two minutes at the least, and the other one. All files are open
# before the first command.
_PAIR = """base=$1 left=1200
exec 3>"$base.out2" 4>"$base.err2" 5>"$base.first"
eval "$2" 3>&- 4>&- 5>&-
echo $? >&5
while [ ! -e "$base.go" ] && [ -e "$base.first" ] && [ "$left" -gt 0 ]; do
    if sleep 0.1 2>/dev/null; then left=$((left - 1)); else sleep 1; left=$((left - 10)); fi
done
eval "$3" >&3 2>&4
"""


class VmwareToolsTransport:
    """Implements :class:`understudy.guests.transport.Transport`; another user than root works through ``sudo -n``."""

    kind = GuestTransport.VMTOOLS
    system = GuestSystem.POSIX

    def __init__(self, operations: GuestOperations) -> None:
        """Log in, and make the private directory.

        :raises GuestError: if the guest refuses, or runs Windows: VMware Tools quiesce that with the snapshot, and
            nothing else can freeze it, so that nothing would be gained.
        """
        if operations.system is GuestSystem.WINDOWS:
            raise GuestError("guest operations", "it is a Windows guest, which VMware Tools quiesce with the snapshot",
                             "leave --transport vmtools out for it")  # fmt: skip
        self._operations = operations
        self._sudo = () if operations.user == "root" else ("sudo", "-n", "--")
        self._directory, self._in_memory = _directory(operations)
        self._count = 0

    def run(
        self, argv: Sequence[str], timeout_s: float, stdin: bytes = b"", check: Callable[[], object] = go_on
    ) -> Completed:
        """Start it, and ask for its end until it came; after the time limit it is killed."""
        deadline = time.monotonic() + timeout_s
        base, pid = self._start(argv, stdin)
        try:
            status = self._await(pid, argv, timeout_s, deadline, check)
        except BaseException:
            self._kill(pid, base)
            raise
        return Completed(status, self._read(f"{base}.out"), self._read(f"{base}.err"))

    def run_pair(
        self, first: Sequence[str], second: Sequence[str], timeout_s: float
    ) -> tuple[Completed, Callable[[float], Completed]]:
        """In one process, which runs ``second`` also if nobody asks for it any more."""
        if not self._in_memory:
            raise GuestError(f"run {first[0]} in the guest", f"it has no place in memory ({MEMORY}) for its answer")
        deadline = time.monotonic() + timeout_s
        base = self._base(self._count + 1)
        words = [SHELL, "-c", _PAIR, "sh", base, shlex.join(first), shlex.join(second)]
        _, pid = self._start(words, b"")
        try:
            status = self._first(pid, base, first, timeout_s, deadline)
        except BaseException:
            self._go(base)
            raise
        done = Completed(status, self._read(f"{base}.out"), self._read(f"{base}.err"))

        def finish(limit_s: float) -> Completed:
            until = time.monotonic() + limit_s
            self._operations.put(f"{base}.go", _SIGN)
            ended = self._await(pid, second, limit_s, until, go_on)
            return Completed(ended, self._read(f"{base}.out2"), self._read(f"{base}.err2"))

        return done, finish

    def put(self, path: str, content: bytes, mode: int, timeout_s: float) -> None:
        """Write a file, with all rights; nobody else can open it meanwhile."""
        script = 'umask 077 && rm -f -- "$1" && cat >"$1" && chmod "$2" "$1"'
        done = self.run([SHELL, "-c", script, "sh", path, f"{mode:o}"], timeout_s, content)
        if done.status != 0:
            raise GuestError(f"write {path} in the guest", done.stderr.decode(errors="replace").strip())

    def close(self) -> None:
        """Remove the private directory."""
        try:
            self._operations.remove_directory(self._directory)
        except UnderstudyError as exc:  # the next session of this user removes it, a week later
            LOG.warning("%s", exc)

    def _base(self, number: int) -> str:
        return f"{self._directory}/{number}"

    def _start(self, argv: Sequence[str], stdin: bytes) -> tuple[str, int]:
        """Start a program; the beginning of its files' names, and its process."""
        last, self._count = self._count, self._count + 1
        base = self._base(self._count)
        if stdin:
            self._operations.put(f"{base}.in", stdin)
        words = ["-c", _WRAPPER, "sh", self._directory, str(self._count), str(last), *self._sudo, *argv]
        return base, self._operations.start(SHELL, shlex.join(words))

    def _await(
        self, pid: int, argv: Sequence[str], timeout_s: float, deadline: float, check: Callable[[], object]
    ) -> int:
        """The exit status of a program, when it has ended."""
        pause_s = _FIRST_PAUSE_S
        while (status := self._operations.ended(pid)) is None:
            pause_s = _pause(argv, timeout_s, deadline, pause_s, check)
        return status

    def _first(self, pid: int, base: str, argv: Sequence[str], timeout_s: float, deadline: float) -> int:
        """The exit status of the first program of a pair, when it has ended."""
        pause_s = _FIRST_PAUSE_S
        while True:
            over = self._operations.ended(pid) is not None
            said = self._said(f"{base}.first")
            if said.endswith(b"\n"):
                return int(said) if said.strip().isdigit() else -1
            if over:
                wrote = " ".join(self._said(f"{base}.err").decode(errors="replace").split())
                raise GuestError(f"run {argv[0]} in the guest", wrote or "it has ended")
            pause_s = _pause(argv, timeout_s, deadline, pause_s, go_on)

    def _said(self, path: str) -> bytes:
        """The beginning of a file that may not be there yet."""
        try:
            return self._operations.get(path, OUTPUT_LIMIT)
        except GuestError as exc:
            LOG.debug("%s", exc)
            return b""

    def _read(self, path: str) -> bytes:
        return self._operations.get(path, OUTPUT_LIMIT)

    def _go(self, base: str) -> None:
        """Have the second program of a pair run, as far as we can; it hides why."""
        try:
            self._operations.put(f"{base}.go", _SIGN)
        except UnderstudyError as exc:
            LOG.warning("%s", exc)

    def _kill(self, pid: int, base: str) -> None:
        """End a program, and the shell that Tools may have put before it."""
        numbers = {pid}
        told = self._said(f"{base}.pid")[:_LONGEST_NUMBER].strip()
        try:
            if told.isdigit() and self._operations.ended(pid) is None:
                numbers.add(int(told))
            for number in numbers:
                self._operations.terminate(number)
        except UnderstudyError as exc:  # it hides why the program is to end
            LOG.warning("%s", exc)


def _directory(operations: GuestOperations) -> tuple[str, bool]:
    """A private directory, and whether it is in memory."""
    try:
        return operations.make_directory(MEMORY), True
    except GuestError as exc:
        LOG.info("%s", exc)
    # If the user is refused, this says so.
    return operations.make_directory(""), False


def _pause(
    argv: Sequence[str], timeout_s: float, deadline: float, pause_s: float, check: Callable[[], object]
) -> float:
    """Wait a while for a program; the next pause.

    :raises GuestError: if its time is over.
    """
    check()
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise GuestError(f"run {argv[0]} in the guest", f"it did not end within {timeout_s:g} s")
    time.sleep(min(pause_s, left_s))
    return min(pause_s * 1.5, _LONGEST_PAUSE_S)
