"""Exports: images served read-only by qemu-nbd children of this mover."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from understudy.errors import PlatformError, UsageError
from understudy.mover.api import NbdSource, OpenExport

CONNECTIONS = 16
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
EXPORT = "disk"


@dataclass(frozen=True)
class _Child:
    tag: str
    process: subprocess.Popen[bytes]
    socket: Path
    stderr: IO[bytes]

    def said(self) -> str:
        """What it wrote to stderr, as one line."""
        self.stderr.seek(0)
        return " ".join(self.stderr.read(4096).decode(errors="replace").split())

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.stderr.close()
        self.socket.unlink(missing_ok=True)


class Exports:
    """The running qemu-nbd children; their sockets are in ``run_dir``."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._children: dict[str, _Child] = {}
        self._lock = threading.Lock()
        # The kernel sends the parent-death signal when the *thread* that forked ends. Threads of a request pool end
        # when idle; this one lives as long as the process.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")

    def open(self, request: OpenExport) -> tuple[str, NbdSource]:
        """Serve an image; returns an id and where it is served.

        :raises PlatformError: if qemu-nbd refuses, with what it said.
        """
        if not request.image.startswith("/"):
            raise UsageError(f"export {request.image!r}", "it is no absolute path")
        key = uuid.uuid4().hex[:12]
        child = self._spawner.submit(self._spawn, request, self._run_dir / f"{key}.nbd").result()
        try:
            _wait_listening(child, request)
        except BaseException:
            child.end()
            raise
        with self._lock:
            self._children[key] = child
        dirty = f"qemu:dirty-bitmap:{request.bitmap}" if request.bitmap else ""
        return key, NbdSource(str(child.socket), EXPORT, dirty)

    def close(self, key: str) -> None:
        """End an export; unknown ids are no error."""
        with self._lock:
            child = self._children.pop(key, None)
        if child is not None:
            child.end()

    def close_tagged(self, tag: str) -> None:
        """End the exports whose tag begins with ``tag``."""
        for key in [key for key, child in list(self._children.items()) if child.tag.startswith(tag)]:
            self.close(key)

    def tags(self) -> tuple[str, ...]:
        """Tags of what is served, sorted."""
        return tuple(sorted({child.tag for child in list(self._children.values())}))

    def close_all(self) -> None:
        """End all exports; none can be opened after."""
        for key in list(self._children):
            self.close(key)
        self._spawner.shutdown()

    @contextmanager
    def serving(self, image: Path, image_format: str) -> Iterator[NbdSource]:
        """The image is served inside the context."""
        key, source = self.open(OpenExport(str(image), image_format, "", "verify"))
        try:
            yield source
        finally:
            self.close(key)

    def _spawn(self, request: OpenExport, path: Path) -> _Child:
        command = [
            "setpriv", "--pdeathsig", "KILL",
            "qemu-nbd", "-r", "--persistent", "-e", str(CONNECTIONS), "-k", str(path), "-f", request.image_format,
            "-x", EXPORT, "-D", request.tag,
        ]
        if request.bitmap:
            command += ["-B", request.bitmap]
        # A file, not a pipe: nobody reads while the child runs, and a full pipe would stop it.
        stderr = tempfile.TemporaryFile(dir=self._run_dir)  # noqa: SIM115 - lives as long as the child
        try:
            process = subprocess.Popen(
                [*command, request.image], stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as exc:
            stderr.close()
            raise PlatformError(f"export {request.image}", f"cannot start qemu-nbd: {exc}",
                                "install qemu-utils and util-linux") from exc
        return _Child(request.tag, process, path, stderr)


def _wait_listening(child: _Child, request: OpenExport) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not greets(child.socket, START_TIMEOUT_S):
        if child.process.poll() is not None:
            raise _refused(request, child.said())
        if time.monotonic() > deadline:
            raise PlatformError(f"export {request.image}", f"qemu-nbd did not start within {START_TIMEOUT_S:.0f} s",
                                "see what slows this host down")
        time.sleep(0.01)


def greets(path: Path, timeout_s: float) -> bool:
    """Whether an NBD server at ``path`` greets. qemu-nbd listens before it opens the image, which may fail."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(str(path))
            return probe.recv(8) == b"NBDMAGIC"
        except OSError:
            return False


def _refused(request: OpenExport, said: str) -> PlatformError:
    said = said.removeprefix("qemu-nbd: ")
    if "Failed to get" in said and "lock" in said:
        return PlatformError(f"export {request.image}", f"the image is in use for writing, by a running VM ({said})",
                             "power the VM off, or read it through its hypervisor")
    return PlatformError(f"export {request.image}", said or "qemu-nbd ended without a word")
