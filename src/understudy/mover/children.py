"""Children: NBD servers that this process runs, each serving one disk on a Unix socket of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from understudy.errors import PlatformError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
_MOST_SAID = 256 * 1024


@dataclass(frozen=True)
class Server:
    """A server to be started.

    :ivar what: the act and its object, as errors name it.
    :ivar command: program and arguments; its name in errors is the program's.
    :ivar socket: where it will serve.
    :ivar packages: what to install if the program is missing.
    :ivar inherited: descriptors that it gets.
    :ivar secret: what is never repeated of what it says.
    """

    tag: str
    what: str
    command: tuple[str, ...]
    socket: Path
    packages: str
    inherited: tuple[int, ...] = ()
    secret: str = field(default="", repr=False)


@dataclass(frozen=True)
class Child:
    """A running server.

    :ivar beside: files that are removed with its socket.
    """

    server: Server
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]
    beside: tuple[Path, ...] = ()

    @property
    def socket(self) -> Path:
        """Where it serves."""
        return self.server.socket

    def said(self) -> str:
        """What it wrote to stderr, the last of it if that is much."""
        # Not by the position of the file, which the child shares: it would write on from there.
        descriptor = self.stderr.fileno()
        size = os.fstat(descriptor).st_size
        said = os.pread(descriptor, _MOST_SAID, max(0, size - _MOST_SAID)).decode(errors="replace")
        return said.replace(self.server.secret, "***") if self.server.secret else said

    def wait_ready(self, ready: Callable[[], bool], refusal: Callable[[str], Exception]) -> None:
        """Wait until ``ready``.

        :param refusal: makes the error of what a server said that ended.
        :raises PlatformError: if it takes too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if self.process.poll() is not None:
                raise refusal(self.said())
            if time.monotonic() > deadline:
                why = f"{self.server.command[0]} did not start within {START_TIMEOUT_S:.0f} s"
                raise PlatformError(self.server.what, why, "see what slows this host down")
            time.sleep(0.01)

    def end(self) -> None:
        """End it, and remove its files."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stderr.close()
        for path in (self.socket, *self.beside):
            path.unlink(missing_ok=True)


class Spawner:
    """Starts servers; they end with this process, however it ends."""

    def __init__(self) -> None:
        # The kernel sends the parent-death signal when the *thread* that forked ends. Threads of a request pool end
        # when idle; this one lives as long as the process.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spawner")

    def start(self, server: Server, beside: Sequence[Path] = ()) -> Child:
        """Start a server; it need not be ready at return.

        :raises PlatformError: if its program is missing.
        """
        return self._thread.submit(_start, server, tuple(beside)).result()

    def close(self) -> None:
        """No more can be started."""
        self._thread.shutdown()


def _start(server: Server, beside: tuple[Path, ...]) -> Child:
    # A file, not a pipe: nobody reads while the child runs, and a full pipe would stop it.
    stderr = tempfile.TemporaryFile(dir=server.socket.parent)  # noqa: SIM115 - lives as long as the child
    try:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *server.command], stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            env={**os.environ, "LC_ALL": "C"}, pass_fds=server.inherited, process_group=0,
        )
    except OSError as exc:
        stderr.close()
        why = f"cannot start {server.command[0]}: {exc}"
        raise PlatformError(server.what, why, f"install {server.packages}") from exc
    return Child(server, process, stderr, beside)
