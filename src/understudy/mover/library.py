"""Library: a disk served through a vendor's disk library, by nbdkit with its vddk plugin.

The library is never shipped; the user puts it on the proxy's host. It has threads, crashes and memory of its own, so it
is in a process of its own, and everything behind the socket is as of any other disk. When the mover dies, nbdkit 1.32
gets SIGTERM, by its own wish, and ends when the library's running calls return: the disk is closed.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from understudy.errors import PlatformError, TransferError, UsageError
from understudy.mover import api
from understudy.mover.children import Child, Server, Spawner
from understudy.mover.library_errors import Reason, reason_in, refusal
from understudy.nbd import NbdClient

PACKAGES = "nbdkit and util-linux"
#: Only encrypted, and never by a way that the library chooses: with a free choice it may crash, and may leave disks
#: attached to the proxy's VM.
TRANSPORT = "nbdssl"
#: What the plugin calls first and last for each connection.
_CONNECTS, _DISCONNECTED = "VDDK call: VixDiskLib_AllocateConnectParams", "VDDK call: VixDiskLib_FreeConnectParams"
_DISCONNECT_TIMEOUT_S = 10.0
_END_S = 1.0
#: The library's log has the reasons of its errors, but not a line for each request.
_VERBOSE = ("-v", "-D", "nbdkit.backend.datapath=0", "-D", "vddk.datapath=0")


class LibraryServer:
    """How one disk is served at ``socket`` as ``export``."""

    def __init__(self, request: api.OpenLibraryExport, socket: Path, export: str) -> None:
        self._request = request
        self._socket = socket
        self._export = export
        self._login = request.export.login
        self._pidfile = socket.with_suffix(".pid")
        self._what = f"open disk {request.export.disk.file!r}"
        self._check()

    def start(self, spawner: Spawner) -> Child:
        """Start nbdkit, and see that the library opens the disk.

        :raises UnderstudyError: if something refuses, with its reason.
        """
        password = _readable(self._login.password)
        try:
            server = Server(self._request.tag, self._what, self._command(password), self._socket, PACKAGES, (password,),
                            self._login.password)
            child = spawner.start(server, (self._pidfile, self._socket.with_suffix(".changed")))
        finally:
            os.close(password)
        try:
            child.wait_ready(self._listens, lambda said: refusal(self._what, said))
            self._try_open(child)
        except BaseException:
            child.end()
            raise
        return child

    def _check(self) -> None:
        disk, login = self._request.export.disk, self._login
        if self._request.writable and disk.snapshot:
            raise UsageError(self._what, "a snapshot cannot be written")
        if "\n" in login.password or not login.password:
            raise UsageError(self._what, "the password is empty or has several lines", "set another credential")
        if not login.library.directory.startswith("/"):
            raise PlatformError(self._what, "it is not known where the disk library is on the proxy's host",
                                "unpack the kit there, and set its absolute path")

    def _command(self, password: int) -> tuple[str, ...]:
        """No argument and no environment variable has the password: others on the host can read those."""
        disk, login = self._request.export.disk, self._login
        options = () if self._request.writable else ("--readonly",)
        settings = [
            f"libdir={login.library.directory}", f"server={login.server}", f"thumbprint={login.thumbprint}",
            f"user={login.user}", f"password=-{password}", f"vm=moref={disk.vm}", f"transports={TRANSPORT}",
            f"file={disk.file}",
        ]
        if disk.snapshot:
            settings.append(f"snapshot={disk.snapshot}")
        if not self._request.writable:
            settings.append("compression=skipz")
        return ("nbdkit", "--foreground", *options, *_VERBOSE, "--unix", str(self._socket),
                "--pidfile", str(self._pidfile), "--exportname", self._export, login.library.plugin, *settings)

    def _listens(self) -> bool:
        # nbdkit writes it when it accepts connections.
        return self._pidfile.exists() and self._pidfile.stat().st_size > 0

    def _try_open(self, child: Child) -> None:
        """The plugin logs in and opens the disk when somebody connects, and by NBD it cannot say what went wrong.

        The connection must have ended before the next one is made: a disk is open for writing only once.
        """
        try:
            NbdClient(str(self._socket), self._export).close()
        except TransferError as exc:
            raise refusal(self._what, child.said()) from exc
        wait_disconnected(child)


def wait_disconnected(child: Child) -> None:
    """Wait until the library has closed the disk of each client that left; not for long, if one did not.

    nbdkit ends the connection to the client first. If it is told to end then, it does not close the disk any more, and
    at the server its session stays for a while.
    """
    if not _is_library(child):
        return
    deadline = time.monotonic() + _DISCONNECT_TIMEOUT_S
    while child.process.poll() is None and time.monotonic() < deadline:
        said = child.said()
        # Of much that was said the beginning is missing: more of the former than of the latter.
        if said.count(_CONNECTS) <= said.count(_DISCONNECTED):
            return
        time.sleep(0.01)


def _is_library(child: Child) -> bool:
    return child.server.command[0] == "nbdkit"


def reason_of(child: Child) -> Reason | None:
    """What a server that reads through the library complained of; None if it did of nothing, or is no such server."""
    if not _is_library(child):
        return None
    reason = reason_in(child.said())
    if reason is not None:
        return reason
    try:
        # Connections of a process that was killed end a moment before it does.
        status = child.process.wait(_END_S)
    except subprocess.TimeoutExpired:
        return None
    return Reason(TransferError, f"nbdkit ended with status {status}", "run the job again")


def _readable(secret: str) -> int:
    """A descriptor that ``secret`` can be read from; it is in memory alone."""
    descriptor = os.memfd_create("password")
    os.write(descriptor, secret.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor

