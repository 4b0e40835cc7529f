"""Commands and proxies in processes that need not import the program first: forks of one that has.

Starting Python and importing the program takes a second of processor time, which is most of what a short command
costs, and its two proxies as much again. Each process here is still one of its own, with its arguments, environment
and standard streams, which the tests may signal, kill and find by its command line like any other. What they do not see
is the start itself; a command that is to begin with that is run by its argument vector, and so are its proxies.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from tests.system import fork_server
from tests.system.fork_server import GO, READY, Request

#: Room for the longest command line that a fork may have to show.
_PADDING = "x" * 4096
_ROOT = Path(__file__).parents[2]
_SERVERS: dict[tuple[str, ...], Forks] = {}


class ForkedProcess:
    """A running process; the verbs are those of ``subprocess.Popen``."""

    def __init__(self, arguments: Sequence[str], outcome: socket.socket) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        self._outcome = outcome
        self._awaited = threading.Lock()
        self.pid = _await_ready(outcome)
        self._pidfd = os.pidfd_open(self.pid)
        outcome.send(GO)

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def poll(self) -> int | None:
        """Its exit status, the negative number of the signal that ended it, or None while it runs."""
        self._await_end(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status."""
        self._await_end(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def _await_end(self, timeout_s: float | None) -> None:
        # While another thread waits it has the answer first.
        if not self._awaited.acquire(timeout=-1 if timeout_s is None else timeout_s):
            return
        try:
            if self.returncode is not None:
                return
            self._outcome.settimeout(timeout_s)
            try:
                said = self._outcome.recv(64)
            except (BlockingIOError, TimeoutError):
                return
            assert said, "the server of forks has ended"
            self.returncode = int(said)
            self._outcome.close()
            os.close(self._pidfd)
        finally:
            self._awaited.release()


class ForkedProxy(ForkedProcess):
    """A proxy, which ends with its standard input."""

    def __init__(self, arguments: Sequence[str], outcome: socket.socket, stdin: IO[bytes]) -> None:
        super().__init__(arguments, outcome)
        self.stdin = stdin


class ForkedCommand(ForkedProcess):
    """A command with what it says."""

    def __init__(self, arguments: Sequence[str], outcome: socket.socket, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self._said: dict[IO[bytes], bytearray] = {stdout: bytearray(), stderr: bytearray()}
        super().__init__(arguments, outcome)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of its output, and for its own; what it wrote to stdout and stderr."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for stream in self._said:
                if not stream.closed:
                    selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready = selector.select(left_s)
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                for key, _events in ready:
                    stream = next(stream for stream in self._said if stream is key.fileobj)
                    part = os.read(key.fd, 1 << 16)
                    self._said[stream] += part
                    if not part:
                        selector.unregister(stream)
                        stream.close()
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        out, err = (self._said[stream].decode() for stream in (self.stdout, self.stderr))
        return out, err


class Forks:
    """The process that commands are forked from.

    :param prefix: what starts it elsewhere, in the namespaces of a lab host, for instance.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Behind the program's own modules in the path.
        start = f"import sys; sys.path.append({str(_ROOT)!r}); from {fork_server.__name__} import main; main()"
        command = [*prefix, sys.executable, "-P", "-c", start, _PADDING]
        with theirs:
            self._server = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], said: str = "") -> ForkedCommand:
        """Start a command: the interpreter, ``-m``, ``understudy``, and its arguments.

        :param said: its whole standard input.
        """
        (out_read, out), (err_read, err) = os.pipe(), os.pipe()
        request = Request(list(arguments), dict(environment), str(Path.cwd()))
        with tempfile.TemporaryFile() as input_file:
            input_file.write(said.encode())
            input_file.seek(0)
            try:
                outcome = _ask(self._control, request, (input_file.fileno(), out, err))
            finally:
                os.close(out)
                os.close(err)
        return ForkedCommand(arguments, outcome, os.fdopen(out_read, "rb", 0), os.fdopen(err_read, "rb", 0))

    def start_proxy(self, command: Sequence[str], out: IO[bytes]) -> ForkedProxy:
        """Start a proxy, as :func:`understudy.mover.process.spawn` does."""
        return start_proxy(self._control, command, out)

    def close(self) -> None:
        """End the server; commands that run go on."""
        self._control.close()
        self._server.wait(30)


def forks(prefix: tuple[str, ...] = ()) -> Forks:
    """Forks made with that prefix: of one server, until :func:`close_forks`."""
    if prefix not in _SERVERS:
        _SERVERS[prefix] = Forks(prefix)
    return _SERVERS[prefix]


def close_forks() -> None:
    """End all servers."""
    while _SERVERS:
        _SERVERS.popitem()[1].close()


def start_proxy(control: socket.socket, command: Sequence[str], out: IO[bytes]) -> ForkedProxy:
    """Start a proxy as its controller does, which is a fork itself.

    :param control: the socket for requests of forks.
    """
    read, write = os.pipe()
    request = Request(list(command), dict(os.environ), str(Path.cwd()), new_session=True)
    try:
        outcome = _ask(control, request, (read, out.fileno(), out.fileno()))
    finally:
        os.close(read)
    return ForkedProxy(command, outcome, os.fdopen(write, "wb", 0))


def _ask(control: socket.socket, request: Request, streams: tuple[int, int, int]) -> socket.socket:
    """Ask for a fork; the socket on which it tells that it is there, and the server how it ended."""
    ours, outcome = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # So that the kernel says who wrote to it, by the pid that it has here.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with outcome:
        socket.send_fds(control, [json.dumps(asdict(request)).encode()], [*streams, outcome.fileno()])
    return ours


def _await_ready(outcome: socket.socket) -> int:
    """The process id of a new fork."""
    said, ancillary, _flags, _address = outcome.recvmsg(len(READY), socket.CMSG_SPACE(12))
    assert said == READY, "the server of forks has ended"
    ((_level, kind, data),) = ancillary
    assert kind == socket.SCM_CREDENTIALS
    return int.from_bytes(data[:4], sys.byteorder)
