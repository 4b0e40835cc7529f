"""A private world for one libvirt host: own pids, mounts, network and host name, kept by one holder process.

The holder is process 1 of a pid namespace, so its end is the end of everything in it: the kernel kills every
process of the namespace and drops its mounts and its network. The holder reads a pipe that only the lab's owner
holds open, so it ends with the owner, also when the owner is killed. No name is left in /run/netns and no
mount outside.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from understudy.lab.commands import find_program, output_of, plain_environment
from understudy.lab.errors import LabError, LabTimeout
from understudy.lab.processes import NamespaceMember, ProcessIdentity, members_of

# Arguments: host name, then pairs of a path and the place that shows it. What each line is for:
# - the pid is read from the outer /proc, before the namespace's own one is mounted over it;
# - a fresh /run hides the machine's D-Bus, systemd and libvirt sockets: libvirtd would otherwise ask the machine's
#   systemd-machined to adopt its guests, by pids that mean other processes out there;
# - without cgroup mounts libvirtd leaves no directories in the machine's cgroup tree;
# - a holder that ignores SIGCHLD makes the kernel reap orphans: QEMU is one, and libvirt waits until its pid is gone
#   (`env` does it because dash refuses `trap '' CHLD` silently).
_SETUP = """set -e
read -r pid rest </proc/self/stat
hostname "$1"; shift
mount -t proc proc /proc
mount -t tmpfs -o mode=0755 tmpfs /run
if grep -q ' /sys/fs/cgroup[ /]' /proc/mounts; then umount -R -l /sys/fs/cgroup; fi
while [ $# -gt 0 ]; do [ -e "$2" ] || mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; done
ip link set lo up
echo "ready $pid"
exec env --ignore-signal=CHLD cat >/dev/null
"""


class Namespaces:
    """The private namespaces of one host, alive from creation to close() or the end of the owner."""

    def __init__(self, hostname: str, binds: Mapping[Path, Path]) -> None:
        """Create the namespaces; `binds` maps a path of this machine to the place that shows it inside."""
        pairs = [str(path) for pair in binds.items() for path in pair]
        kinds = ["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
        self._unshare = subprocess.Popen(
            [find_program("unshare"), *kinds, "sh", "-c", _SETUP, "sh", hostname, *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The terminal's Ctrl-C is for the owner, which then closes the lab in good order.
            start_new_session=True,
            env=plain_environment(),
        )
        self.holder = self._await_ready()
        self._inode = Path(f"/proc/{self.holder.pid}/ns/pid").stat().st_ino

    def _await_ready(self) -> ProcessIdentity:
        answer = _pipe(self._unshare.stdout).readline().split()
        holder = ProcessIdentity.of(int(answer[1])) if answer[:1] == ["ready"] else None
        if holder is None:
            self._unshare.kill()
            words = self._unshare.communicate()[1].strip()
            raise LabError("create private namespaces", words or "the holder process ended")
        return holder

    def run(
        self, command: Sequence[str], timeout_s: float = 60, *, environment: Mapping[str, str] | None = None
    ) -> str:
        """Run a program of this machine inside, to its end, and return its stdout; in the plain environment by default.

        Raises CommandFailed with its stderr when it does not end with 0, LabTimeout when it does not end in time: it
        and what it started are killed then.
        """
        with subprocess.Popen(
            [find_program("nsenter"), *self.enter_options(), find_program(command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=plain_environment() if environment is None else environment,
        ) as entered:
            try:
                stdout, stderr = entered.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired as exc:
                raise LabTimeout(" ".join(command), f"did not end within {timeout_s:g} s") from exc
            finally:
                self._kill_session(entered)
        return output_of(command, entered.returncode, stdout, stderr)

    def _kill_session(self, entered: subprocess.Popen[str]) -> None:
        """End a program that nsenter still waits for."""
        # Not by killing nsenter: the program would go on, and at its end be a zombie of the machine's process 1. Where
        # that one does not reap (it may be anything in a container), the namespaces could not end either.
        while entered.poll() is None:
            for member in self.members():
                identity = ProcessIdentity.of(member.pid)
                if identity is not None and identity.session() == entered.pid:
                    identity.signal(signal.SIGKILL)
            time.sleep(0.01)

    def enter_options(self) -> list[str]:
        """Options that make nsenter enter these namespaces."""
        return ["--target", str(self.holder.pid), "--mount", "--pid", "--net", "--uts", "--ipc"]

    def members(self) -> list[NamespaceMember]:
        """The processes inside, holder included."""
        return list(members_of(self._inode))

    def find(self, inner_pid: int) -> ProcessIdentity | None:
        """The process that has this pid inside."""
        pids: Iterable[int] = (member.pid for member in self.members() if member.inner_pid == inner_pid)
        return next((ProcessIdentity.of(pid) for pid in pids), None)

    def close(self, timeout_s: float = 10) -> None:
        """End every process inside and the namespaces with them; raises LabTimeout naming what still runs."""
        _pipe(self._unshare.stdin).close()
        try:
            self._unshare.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            rest = ", ".join(f"{member.pid} ({member.command})" for member in self.members())
            raise LabTimeout("end private namespaces", f"still running: {rest}") from exc
        finally:
            for pipe in (self._unshare.stdout, self._unshare.stderr):
                _pipe(pipe).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise LabError("private namespaces", "the holder process was started without pipes")
    return stream
