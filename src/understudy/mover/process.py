"""Process: a mover as a child of this process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from understudy.certificates import Credentials
from understudy.errors import MoverError
from understudy.mover.api import About, MoverInfo
from understudy.mover.client import MoverClient
from understudy.mover.endpoints import UnixEndpoint

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 25.0
KILL_TIMEOUT_S = 5.0
#: sun_path of a Unix socket (unix(7)), the terminating zero included.
LONGEST_SOCKET_PATH = 107
#: What a mover adds to its run directory for sockets of its own.
_LONGEST_NAME = len("/0123456789ab.nbd")


def spawn(command: Sequence[str], out: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the program of a mover, in a session of its own: Ctrl-C on a terminal is for the controller, which ends it.

    :param out: gets what it says.
    :raises OSError: if it cannot be started.
    """
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)


class MoverProcess:
    """A running mover.

    :param run_dir: directory for sockets, private to this user; made if missing. One for each mover.
    :param log: file that gets what the mover says.
    :param credentials: what it proves to other hosts that it is ``identity`` with; without them it talks to none.
    :param data_listen: address for data connections from other hosts, ``HOST:PORT`` or ``:PORT``; empty for none.
    :raises MoverError: if it does not start.
    """

    def __init__(
        self, name: str, run_dir: Path, state_dir: Path, log: Path, credentials: Credentials | None = None,
        identity: str = "", data_listen: str = "",
    ) -> None:  # fmt: skip
        self._name = name
        self.log = log
        self.socket = run_dir / "mover.sock"
        self._prepare(run_dir)
        command = [
            sys.executable, "-m", "understudy.mover",
            "--socket", str(self.socket), "--name", name, "--state-dir", str(state_dir),
            "--identity", identity, "--data-listen", data_listen,
        ]
        if credentials is not None:
            command += ["--credentials", str(credentials.directory)]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as out:
                self._child = spawn(command, out)
        except OSError as exc:
            raise MoverError(f"start proxy {name!r}", str(exc)) from exc
        self.client = MoverClient(UnixEndpoint(self.socket))
        try:
            self.info = self._wait_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._child.poll() is None

    def close(self) -> None:
        """End the mover: its standard input ends; if that does not help, signals."""
        self.client.close()
        if self._child.stdin is not None:
            self._child.stdin.close()
        for timeout_s, harder in ((END_TIMEOUT_S, self._child.terminate), (KILL_TIMEOUT_S, self._child.kill)):
            try:
                self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                harder()
        self._child.wait()
        self.socket.unlink(missing_ok=True)

    def _prepare(self, run_dir: Path) -> None:
        longest = len(os.fsencode(run_dir)) + _LONGEST_NAME
        if longest > LONGEST_SOCKET_PATH:
            raise MoverError(f"start proxy {self._name!r}", f"the path {run_dir} is too long for a Unix socket",
                             f"use one of at most {LONGEST_SOCKET_PATH - _LONGEST_NAME} bytes")
        try:
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            run_dir.chmod(0o700)
            # Nobody serves there any more: a run directory belongs to one mover, and this one starts now.
            self.socket.unlink(missing_ok=True)
        except OSError as exc:
            raise MoverError(f"start proxy {self._name!r}", f"run directory {run_dir}: {exc.strerror}") from exc

    def _wait_ready(self) -> MoverInfo:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if not self.alive:
                raise MoverError(f"start proxy {self._name!r}", f"it ended with status {self._child.returncode}",
                                 f"see {self.log}")
            if self.socket.exists():
                try:
                    return self.client.call(About(), MoverInfo)
                except MoverError:
                    if time.monotonic() > deadline:
                        raise
            if time.monotonic() > deadline:
                raise MoverError(f"start proxy {self._name!r}", f"not ready within {START_TIMEOUT_S:.0f} s",
                                 f"see {self.log}")
            time.sleep(0.01)
