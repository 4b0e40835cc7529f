"""Exports: images served read-only by qemu-nbd, and disks served through a vendor's disk library by nbdkit."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from understudy.errors import PlatformError, TransferError, UsageError
from understudy.model.snapshot import LibraryExport
from understudy.mover import api
from understudy.mover.changed import context_of, write_areas
from understudy.mover.children import START_TIMEOUT_S, Child, Server, Spawner
from understudy.mover.library import LibraryServer, reason_of, wait_disconnected
from understudy.mover.library_errors import Reason

CONNECTIONS = 16
EXPORT = "disk"


class Exports:
    """The running servers; their sockets are in ``run_dir``."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._children: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._spawner = Spawner()

    def open(self, request: api.OpenExport) -> tuple[str, api.NbdSource]:
        """Serve an image; returns an id and where it is served.

        :raises PlatformError: if qemu-nbd refuses, with what it said.
        """
        if not request.image.startswith("/"):
            raise UsageError(f"export {request.image!r}", "it is no absolute path")
        key = _new_key()
        child = self._spawner.start(_image_server(request, self._run_dir / f"{key}.nbd"))
        try:
            child.wait_ready(lambda: greets(child.socket, START_TIMEOUT_S), lambda said: _refused(request, said))
        except BaseException:
            child.end()
            raise
        self._add(key, child)
        dirty = f"qemu:dirty-bitmap:{request.bitmap}" if request.bitmap else ""
        return key, api.NbdSource(str(child.socket), EXPORT, dirty)

    def open_library(self, request: api.OpenLibraryExport) -> tuple[str, api.NbdSource]:
        """Serve a disk through the vendor's disk library; returns an id and where it is served.

        :raises UnderstudyError: if the library, or the server that it logs in to, refuses.
        """
        key = _new_key()
        path = self._run_dir / f"{key}.nbd"
        try:
            if request.export.changed is not None:
                write_areas(path, request.export.changed)
            child = LibraryServer(request, path, EXPORT).start(self._spawner)
        except BaseException:
            write_areas(path, None)
            raise
        self._add(key, child)
        return key, api.NbdSource(str(path), EXPORT, context_of(key) if request.export.changed is not None else "")

    @contextmanager
    def explaining(self, source: api.NbdSource) -> Iterator[None]:
        """Errors of reading say what the vendor's disk library said: by NBD comes only that there was an error."""
        try:
            yield
        except TransferError as exc:
            # Errors of a connection name it. Others are of the target, or of the way there.
            reason = self.reason(source) if source.socket in exc.what else None
            if reason is None:
                raise
            raise TransferError(exc.what, f"{exc.why} ({reason.why})", reason.todo) from exc

    def reason(self, source: api.NbdSource) -> Reason | None:
        """What the vendor's disk library complained of, if ``source`` is served through it; None if of nothing."""
        child = next((child for child in list(self._children.values()) if str(child.socket) == source.socket), None)
        return reason_of(child) if child is not None else None

    def close(self, key: str) -> None:
        """End an export; unknown ids are no error."""
        child = self._taken(key)
        if child is not None:
            wait_disconnected(child)
            child.end()

    def close_tagged(self, tag: str) -> None:
        """End the exports whose tag begins with ``tag``."""
        for key in [key for key, child in list(self._children.items()) if child.server.tag.startswith(tag)]:
            self.close(key)

    def tags(self) -> tuple[str, ...]:
        """Tags of what is served, sorted."""
        return tuple(sorted({child.server.tag for child in list(self._children.values())}))

    def close_all(self) -> None:
        """End all exports; none can be opened after."""
        for key in list(self._children):
            child = self._taken(key)
            if child is not None:
                child.end()
        self._spawner.close()

    @contextmanager
    def serving(self, image: Path, image_format: str) -> Iterator[api.NbdSource]:
        """The image is served inside the context."""
        key, source = self.open(api.OpenExport(str(image), image_format, "", "verify"))
        try:
            yield source
        finally:
            self.close(key)

    @contextmanager
    def serving_library(self, export: LibraryExport) -> Iterator[api.NbdSource]:
        """The disk is served through the vendor's disk library inside the context, read-only."""
        key, source = self.open_library(api.OpenLibraryExport(export, "verify"))
        try:
            yield source
        finally:
            self.close(key)

    def _taken(self, key: str) -> Child | None:
        with self._lock:
            return self._children.pop(key, None)

    def _add(self, key: str, child: Child) -> None:
        with self._lock:
            self._children[key] = child


def _new_key() -> str:
    return uuid.uuid4().hex[:12]


def _image_server(request: api.OpenExport, path: Path) -> Server:
    command = [
        "qemu-nbd", "-r", "--persistent", "-e", str(CONNECTIONS), "-k", str(path), "-f", request.image_format,
        "-x", EXPORT, "-D", request.tag,
    ]
    if request.bitmap:
        command += ["-B", request.bitmap]
    what = f"export {request.image}"
    return Server(request.tag, what, (*command, request.image), path, "qemu-utils and util-linux")


def greets(path: Path, timeout_s: float) -> bool:
    """Whether an NBD server at ``path`` greets. qemu-nbd listens before it opens the image, which may fail."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(str(path))
            return probe.recv(8) == b"NBDMAGIC"
        except OSError:
            return False


def _refused(request: api.OpenExport, said: str) -> PlatformError:
    said = " ".join(said.split()).removeprefix("qemu-nbd: ")
    if "Failed to get" in said and "lock" in said:
        return PlatformError(f"export {request.image}", f"the image is in use for writing, by a running VM ({said})",
                             "power the VM off, or read it through its hypervisor")
    return PlatformError(f"export {request.image}", said or "qemu-nbd ended without a word")
