"""NBD client: block status of several contexts, reads and writes with several in flight, over libnbd.

Servers on this machine are reached by a Unix socket, those on other hosts by TLS with certificates on both sides.
libnbd's own errors end here: everything raised is a :class:`~understudy.errors.TransferError`, or, of what is written,
a :class:`~understudy.errors.DatastoreError`.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nbd

from understudy.certificates import IDENTITY, PROXIES_CA, Credentials
from understudy.errors import DatastoreError, TransferError
from understudy.model.extent import Extent
from understudy.units import KIB, MIB

ALLOCATION = "base:allocation"
#: Flag of ``base:allocation``: the area reads as zeros (NBD protocol, NBD_STATE_ZERO).
ZERO_FLAG = 2
#: Flag of ``qemu:dirty-bitmap:*``: the area changed (QEMU docs/interop/nbd.txt).
DIRTY_FLAG = 1

CONNECT_TIMEOUT_S = 30.0
LEAVE_TIMEOUT_S = 2.0
_POLL_S = 0.2
#: Reads are cut into requests of this length. qemu-nbd takes new memory for each, and for a MiB at a time the kernel
#: has to map, clear and unmap it: that costs more than the reading (measured: 0.5 to 0.9 s/GiB, with these 0.3 to 0.4).
PIECE = 512 * KIB
#: So much is zeroed by one request: a server that has to write the zeros answers within seconds.
ZERO_PIECE = 32 * MIB

_FULL = ("ENOSPC", "EDQUOT")

# The names that libnbd wants in a directory of certificates.
_CA, _CERTIFICATE, _KEY = "ca-cert.pem", "client-cert.pem", "client-key.pem"


def tls_directory(credentials: Credentials) -> Path:
    """The credentials under the names that libnbd wants, made if missing. They are links: renewals need nothing.

    :raises OSError: if that is not possible.
    """
    directory = credentials.directory / "nbd"
    directory.mkdir(mode=0o700, exist_ok=True)
    for name, target in ((_CA, PROXIES_CA), (_CERTIFICATE, IDENTITY), (_KEY, IDENTITY)):
        # Another thread may make the same link.
        with suppress(FileExistsError):
            (directory / name).symlink_to(Path("..") / target)
    return directory


def lets_anybody_in(address: str, export: str, tls_dir: Path) -> bool:
    """Whether a TLS server that is known to answer lets somebody read who has no certificate."""
    with tempfile.TemporaryDirectory(prefix="understudy-") as bare:
        (Path(bare) / _CA).symlink_to((tls_dir / _CA).resolve())
        try:
            NbdClient(address, export, tls_dir=Path(bare)).close()
        except TransferError:
            return False
    return True


class NbdClient:
    """One connection to an export; not for use by several threads at once.

    :param where: path of the server's Unix socket; with ``tls_dir``, its ``HOST:PORT``.
    :param contexts: meta contexts to ask for; :meth:`has` tells which the server granted.
    :param tls_dir: our certificates, see :func:`tls_directory`: only a server whose certificate is for its host name
        and signed by the authority there is talked to, and never without TLS.
    :raises TransferError: if there is no connection within 30 s.
    """

    def __init__(self, where: str, export: str, contexts: Sequence[str] = (), tls_dir: Path | None = None) -> None:
        self.name = f"{where}:{export}"
        self._handle: Any = nbd.NBD()
        self._reads: dict[int, list[tuple[int, memoryview]]] = {}
        self._writes: dict[int, bytes] = {}
        try:
            with self._errors("connect"):
                self._connect(where, export, contexts, tls_dir)
                self.size = int(self._handle.get_size())
                self.multi_conn = bool(self._handle.can_multi_conn())
                self.read_only = bool(self._handle.is_read_only())
                self._granted = tuple(name for name in contexts if self._handle.can_meta_context(name))
        except TransferError:
            self.abort()
            raise

    def _connect(self, where: str, export: str, contexts: Sequence[str], tls_dir: Path | None) -> None:
        for name in contexts:
            self._handle.add_meta_context(name)
        self._handle.set_export_name(export)
        # Every read that succeeds fills its whole buffer; clearing it first would cost a memset a block.
        self._handle.set_pread_initialize(False)
        # Not connect_unix(): it waits for ever for the greeting of a server that has no free connection.
        if tls_dir is None:
            self._handle.aio_connect_unix(where)
        else:
            self._handle.set_tls(nbd.TLS_REQUIRE)
            self._handle.set_tls_verify_peer(True)
            self._handle.set_tls_certificates(str(tls_dir))
            host, _, port = where.rpartition(":")
            self._handle.aio_connect_tcp(host.strip("[]"), port)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while self._handle.aio_is_connecting() or self._handle.aio_is_negotiating():
            if time.monotonic() > deadline:
                raise TransferError(f"connect to NBD export {self.name}", "no answer from the server")
            self._handle.poll(200)
        if not self._handle.aio_is_ready():
            raise TransferError(f"connect to NBD export {self.name}", "the server refused the export or closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def has(self, context: str) -> bool:
        """Whether the server granted the meta context."""
        return context in self._granted

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """Block status of all granted contexts from ``start``.

        The server may answer for less than asked and differently for each context, so requests repeat until
        ``at_least`` bytes are known in all of them.

        :param length: bytes wanted at most, below 4 GiB.
        :returns: bytes known (``at_least`` to ``length``), and per context extents that tile exactly these bytes.
        """
        known: dict[str, list[Extent]] = {name: [] for name in self._granted}
        position, end = start, start + length
        if not known:
            return length, known
        while position < start + at_least:
            answers = self._status_once(position, end - position)
            reached = min(answers[name][-1].end for name in known)
            for name, extents in known.items():
                extents.extend(_cut(answers[name], reached))
            position = reached
        return position - start, known

    def _status_once(self, start: int, length: int) -> dict[str, list[Extent]]:
        answers: dict[str, list[Extent]] = {}

        def collect(context: str, offset: int, entries: list[int], _error: Any) -> int:
            extents = []
            for size, flags in zip(entries[::2], entries[1::2], strict=True):
                extents.append(Extent(offset, size, flags))
                offset += size
            answers[context] = extents
            return 0

        with self._errors(f"block status at {start}"):
            self._handle.block_status(length, start, collect)
        for name in self._granted:
            extents = _cut(answers.get(name, []), start + length)
            if not extents or extents[0].start != start:
                raise TransferError(f"block status of {self.name} at {start}", f"no answer for context {name}")
            answers[name] = extents
        return answers

    def start_read(self, view: memoryview, offset: int) -> int:
        """Ask for ``len(view)`` bytes from ``offset`` into ``view``, which must stay untouched until :meth:`finished`.

        :returns: a number for :meth:`finished`.
        """
        pieces: list[tuple[int, memoryview]] = []
        with self._errors(f"read at {offset}"):
            for start in range(0, len(view), PIECE):
                # No nbd.Buffer: libnbd 1.14 never lets go of what is in one, so memory would grow with every read.
                piece = view[start : start + PIECE]
                pieces.append((int(self._handle.aio_pread(piece, offset + start)), piece))
        cookie = pieces[-1][0]
        self._reads[cookie] = pieces
        return cookie

    def finished(self, cookie: int) -> bool:
        """Whether the read is complete; it must not be asked for again then.

        :raises TransferError: if the read failed.
        """
        pieces = self._reads[cookie]
        with self._errors("read"):
            while pieces and self._handle.aio_command_completed(pieces[-1][0]):
                pieces.pop()
        if not pieces:
            del self._reads[cookie]
        return not pieces

    def read(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` from ``offset``, and wait for that; nothing else may be in flight.

        :raises TransferError: if the read failed.
        """
        cookie = self.start_read(view, offset)
        while not self.finished(cookie):
            self.poll(_POLL_S)

    def start_write(self, data: bytes, offset: int) -> int:
        """Ask for ``data`` to be written at ``offset``.

        :returns: a number for :meth:`written`.
        :raises DatastoreError: if that is not possible.
        """
        with self._write_errors(f"write at {offset}"):
            cookie = int(self._handle.aio_pwrite(data, offset))
        self._writes[cookie] = data
        return cookie

    def start_zero(self, offset: int, length: int) -> int:
        """Ask for a range to be zeroed, of :data:`ZERO_PIECE` at most; as :meth:`start_write`.

        It reads as zeros afterwards, by whatever means the server has.
        """
        with self._write_errors(f"zero at {offset}"):
            if self._handle.can_zero():
                cookie = int(self._handle.aio_zero(length, offset))
                self._writes[cookie] = b""
                return cookie
        return self.start_write(bytes(length), offset)

    def written(self, cookie: int) -> bool:
        """Whether a write, zero or flush is complete; it must not be asked for again then.

        :raises DatastoreError: if it failed.
        """
        with self._write_errors("write"):
            complete = bool(self._handle.aio_command_completed(cookie))
        if complete:
            del self._writes[cookie]
        return complete

    def start_flush(self) -> int:
        """Ask for what was written to be made durable, as far as that is complete by now; as :meth:`start_write`.

        :raises DatastoreError: if the server has no way to do it.
        """
        with self._write_errors("flush"):
            if not self._handle.can_flush():
                raise DatastoreError(f"flush NBD export {self.name}", "its server cannot make data durable")
            cookie = int(self._handle.aio_flush())
        self._writes[cookie] = b""
        return cookie

    def poll(self, timeout_s: float) -> None:
        """Wait until something moved on the connection."""
        try:
            self._handle.poll(int(timeout_s * 1000))
        except nbd.Error as exc:
            if exc.errno != "EINTR":
                raise TransferError(f"read NBD export {self.name}", exc.string) from exc

    def close(self) -> None:
        """Say goodbye and close; the server's answer does not matter any more."""
        if self._handle is not None:
            # An error means that the server closed first: every byte that mattered has been received.
            with suppress(nbd.Error):
                self._handle.aio_disconnect()
                # nbdkit 1.32 dies of a client that is gone before the answers to its reads; so they are waited for.
                deadline = time.monotonic() + LEAVE_TIMEOUT_S
                while not self._handle.aio_is_closed() and time.monotonic() < deadline:
                    self._handle.poll(int(_POLL_S * 1000))
        self.abort()

    def abort(self) -> None:
        """Close without waiting for anything."""
        handle, self._handle = self._handle, None
        if handle is not None:
            # libnbd closes the socket with the last reference, and the traceback of an error may have one for long.
            with suppress(nbd.Error, OSError), socket.socket(fileno=os.dup(handle.aio_get_fd())) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        # Nothing arrives any more in the buffers of pending reads.
        del handle
        self._reads.clear()
        self._writes.clear()

    @contextmanager
    def _errors(self, act: str) -> Iterator[None]:
        try:
            yield
        except nbd.Error as exc:
            raise TransferError(f"{act} on NBD export {self.name}", exc.string) from exc
        except OSError as exc:
            raise TransferError(f"{act} on NBD export {self.name}", str(exc)) from exc

    @contextmanager
    def _write_errors(self, act: str) -> Iterator[None]:
        what = f"{act} on NBD export {self.name}"
        try:
            yield
        except nbd.Error as exc:
            if exc.errno in _FULL:
                raise DatastoreError(what, "the datastore is full", "free space on it, or use another one") from exc
            raise DatastoreError(what, f"writing fails: {exc.string}",
                                 "see that the datastore and its host are well, then run the job again") from exc


def _cut(extents: list[Extent], end: int) -> list[Extent]:
    """``extents`` up to ``end``; a server may report beyond what was asked, and zero lengths must not stop us."""
    return [
        item if item.end <= end else Extent(item.start, end - item.start, item.flags)
        for item in extents
        if item.start < end and item.length > 0
    ]
