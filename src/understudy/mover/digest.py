"""Digest files: one digest per block of a disk at a restore point.

A digest is BLAKE3 cut to 16 bytes. The digest of an all-zero block is 16 zero bytes *by definition*, so the file of a
sparse disk is sparse.

File: a header page of 4096 bytes, then the array of digests. Header, little endian: magic ``USTDIGST``, format version
(u32), algorithm (u32, 1 = BLAKE3-128), block size (u32), state (u32, 0 incomplete, 1 complete), disk size (u64),
checksum of the array (u64), length of the point id (u32), point id (256 bytes, UTF-8); zeros; the last 8 bytes are the
XXH3-64 of all before. Checksum of the array: XXH3-64 over (chunk number u64, chunk) of each 64 KiB chunk that is not
all zero, so that it does not depend on where the file system put holes.

Files are read and written with ``pread``/``pwrite`` rather than mapped: pages of a mapping count as this process's
memory, 1 GiB for a 64 TiB disk (S12), and a fault in a hole on tmpfs makes a page.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import blake3
import xxhash

from understudy.errors import DatastoreError, ReplicaError, UsageError
from understudy.units import KIB, block_count

DIGEST_BYTES = 16
ZERO_DIGEST = bytes(DIGEST_BYTES)
HEADER_BYTES = 4 * KIB
CHUNK = 64 * KIB
PAGE = 4 * KIB
VERSION = 1

_MAGIC = b"USTDIGST"
_ALGORITHM = 1
_INCOMPLETE, _COMPLETE = 0, 1
_HEADER = struct.Struct("<8sIIIIQQI256s")
_CHECK = struct.Struct("<Q")
_ZERO_CHUNK = bytes(CHUNK)
_LARGEST_BLOCK = 64 << 20


def block_digest(block: memoryview) -> bytes:
    """Digest of a block that is not all zero."""
    return blake3.blake3(block).digest(length=DIGEST_BYTES)


@dataclass(frozen=True)
class DigestHeader:
    """What a digest file says about itself.

    :ivar checksum: of the array; 0 while incomplete.
    """

    point: str
    size: int
    block_size: int
    checksum: int = 0
    complete: bool = False

    @property
    def blocks(self) -> int:
        """Number of digests."""
        return block_count(self.size, self.block_size)


class DigestReader:
    """A complete digest file, checked against its checksums when opened.

    :param verify: False skips the array (it reads the whole file): only for looking at :attr:`header`.
    :raises ReplicaError: if the file is missing, incomplete, cut, damaged or of a newer format.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        with _read_errors(path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.header = _load_header(self._fd, path)
                if verify:
                    self._verify()
            except BaseException:
                os.close(self._fd)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _verify(self) -> None:
        found = array_checksum(self._fd, self.header.blocks * DIGEST_BYTES)
        if found != self.header.checksum:
            raise _damaged(self.path, "the checksum of its digests does not match")

    def read(self, first: int, count: int) -> bytes:
        """Digests of blocks ``first`` to ``first + count - 1``, which must exist."""
        return read_digests(self._fd, self.path, first, count)

    def chunks(self, length: int) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of the chunks in the first ``length`` bytes of the array that are not all zero."""
        with _read_errors(self.path):
            for _, offset, chunk in data_chunks(self._fd, min(length, self.header.blocks * DIGEST_BYTES)):
                yield offset, chunk

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class DigestWriter:
    """A digest file in the making at ``path`` (replaced if it exists), all zero at first; usable by several threads.

    Until :meth:`finish` the header says incomplete, and no reader accepts the file.

    :param base: digests to begin with.
    :param keep: go on with the file of an earlier writer for the same header, if there is one.
    :raises DatastoreError: if it cannot be written.
    """

    def __init__(
        self, path: Path, header: DigestHeader, base: DigestReader | None = None, *, keep: bool = False
    ) -> None:
        self.path = path
        self.header = replace(header, checksum=0, complete=False)
        self._closing = threading.Lock()
        if keep and _header_of_draft(path) == self.header:
            with _write_errors(path):
                self._fd: int = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                # It may have been completed; durably no more before anything in it changes.
                write_all(self._fd, _pack_header(self.header), 0)
                os.fdatasync(self._fd)
            return
        with _write_errors(path):
            path.unlink(missing_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(self._fd, HEADER_BYTES + header.blocks * DIGEST_BYTES)
                if base is not None:
                    for offset, chunk in base.chunks(header.blocks * DIGEST_BYTES):
                        self._copy_pages(offset, chunk)
                    # A file with a header may be gone on with after a power cut: then these digests must be in it.
                    os.fdatasync(self._fd)
                write_all(self._fd, _pack_header(self.header), 0)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def read(self, first: int, count: int) -> bytes:
        """Present digests of blocks ``first`` to ``first + count - 1``."""
        return read_digests(self._fd, self.path, first, count)

    def put(self, first: int, digests: bytes | bytearray | memoryview) -> None:
        """Set the digests from block ``first`` on."""
        if len(digests) % DIGEST_BYTES or first < 0 or first + len(digests) // DIGEST_BYTES > self.header.blocks:
            raise UsageError(f"digest file {self.path}", f"no place for {len(digests)} bytes at block {first}")
        with _write_errors(self.path):
            write_all(self._fd, digests, HEADER_BYTES + first * DIGEST_BYTES)

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of the chunks of the array that are not all zero."""
        with _read_errors(self.path):
            for _, offset, chunk in data_chunks(self._fd, self.header.blocks * DIGEST_BYTES):
                yield offset, chunk

    def clear(self, first: int, count: int) -> None:
        """Set ``count`` digests from ``first`` on to the zero digest; holes stay holes."""
        step = CHUNK // DIGEST_BYTES
        for start in range(first, first + count, step):
            number = min(step, first + count - start)
            if self.read(start, number) != _ZERO_CHUNK[: number * DIGEST_BYTES]:
                self.put(start, _ZERO_CHUNK[: number * DIGEST_BYTES])

    def _copy_pages(self, offset: int, chunk: bytes) -> None:
        """Write what is not zero: a file of one digest here and there must not grow from copy to copy."""
        for start in range(0, len(chunk), PAGE):
            page = chunk[start : start + PAGE]
            if page != _ZERO_CHUNK[: len(page)]:
                write_all(self._fd, page, HEADER_BYTES + offset + start)

    def sync(self) -> None:
        """Make the digests that were written durable; the file stays incomplete."""
        with _write_errors(self.path):
            os.fdatasync(self._fd)

    def finish(self) -> int:
        """Make the file complete and durable; returns the checksum of the array."""
        with _write_errors(self.path):
            checksum = array_checksum(self._fd, self.header.blocks * DIGEST_BYTES)
            # The array first: a complete header must never stand before a torn array.
            os.fsync(self._fd)
            self.header = replace(self.header, checksum=checksum, complete=True)
            write_all(self._fd, _pack_header(self.header), 0)
            os.fsync(self._fd)
            sync_directory(self.path.parent)
        return checksum

    def close(self) -> None:
        """Close the file; what is not finished stays incomplete."""
        with self._closing:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _header_of_draft(path: Path) -> DigestHeader | None:
    """The header of a draft's file, completed or not, as it was begun; None if there is no such file, or it is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return replace(_load_header(fd, path, unfinished=True), checksum=0, complete=False)
    except (OSError, ReplicaError):
        return None
    finally:
        os.close(fd)


class UnfinishedDigests:
    """The digests in a file of a draft; who reads must know from elsewhere which of them count.

    The file may have been completed: its disk was there, and the draft failed for another reason.

    :raises ReplicaError: if it is no such file for a disk of ``size`` bytes in blocks of ``block_size``.
    """

    def __init__(self, path: Path, size: int, block_size: int) -> None:
        header = _header_of_draft(path)
        if header is None or (header.size, header.block_size) != (size, block_size):
            raise _damaged(path, "it holds no digests of such a disk")
        self.path = path
        with _read_errors(path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, first: int, count: int) -> bytes:
        """Digests of blocks ``first`` to ``first + count - 1``, which must exist."""
        return read_digests(self._fd, self.path, first, count)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def copy_digests(source: Path, target: Path) -> None:
    """Copy a complete digest file, verifying it and keeping its holes; durable at return.

    :raises ReplicaError: if the source is not usable.
    :raises DatastoreError: if the target cannot be written.
    """
    with DigestReader(source) as reader, DigestWriter(target, reader.header, reader) as writer:
        if writer.finish() != reader.header.checksum:
            raise _damaged(source, "it changed while it was copied")


def read_digests(fd: int, path: Path, first: int, count: int) -> bytes:
    """``count`` digests from block ``first`` on of an open digest file.

    :raises ReplicaError: if the file is shorter.
    """
    with _read_errors(path):
        found = os.pread(fd, count * DIGEST_BYTES, HEADER_BYTES + first * DIGEST_BYTES)
    if len(found) != count * DIGEST_BYTES:
        raise _damaged(path, f"it ends before block {first + count - 1}")
    return found


def array_checksum(fd: int, length: int) -> int:
    """Checksum of the array, as the module's docstring defines it."""
    hasher = xxhash.xxh3_64()
    for number, _, chunk in data_chunks(fd, length):
        hasher.update(_CHECK.pack(number))
        hasher.update(chunk)
    return hasher.intdigest()


def data_chunks(fd: int, length: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset in the array and bytes of each chunk that is not all zero; holes are skipped without reading."""
    number, count = 0, block_count(length, CHUNK)
    while number < count:
        data = _next_data(fd, HEADER_BYTES + number * CHUNK)
        if data < 0:
            return
        number = max(number, (data - HEADER_BYTES) // CHUNK)
        if number >= count:
            return
        offset = number * CHUNK
        chunk = os.pread(fd, min(CHUNK, length - offset), HEADER_BYTES + offset)
        if len(chunk) != min(CHUNK, length - offset):
            raise OSError(errno.EIO, "file ends early")
        if chunk != _ZERO_CHUNK[: len(chunk)]:
            yield number, offset, chunk
        number += 1


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """``pwrite`` until everything is written.

    :raises OSError: as ``pwrite`` does.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable.

    :raises OSError: if it cannot be synced.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _next_data(fd: int, position: int) -> int:
    """Offset of the next byte at or after ``position`` that is not in a hole, -1 if there is none."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return -1
        raise


def _pack_header(header: DigestHeader) -> bytes:
    point = header.point.encode()
    if len(point) > 256:
        raise UsageError(f"restore point {header.point!r}", "its name is too long for a digest file")
    state = _COMPLETE if header.complete else _INCOMPLETE
    fields = _HEADER.pack(
        _MAGIC, VERSION, _ALGORITHM, header.block_size, state, header.size, header.checksum, len(point), point
    )
    page = fields.ljust(HEADER_BYTES - _CHECK.size, b"\0")
    return page + _CHECK.pack(xxhash.xxh3_64_intdigest(page))


def _load_header(fd: int, path: Path, *, unfinished: bool = False) -> DigestHeader:
    """The header; of a file that was not completed only if ``unfinished``."""
    page = os.pread(fd, HEADER_BYTES, 0)
    if len(page) != HEADER_BYTES or page[:8] != _MAGIC:
        raise _damaged(path, "it is no digest file")
    if xxhash.xxh3_64_intdigest(page[: -_CHECK.size]) != _CHECK.unpack(page[-_CHECK.size :])[0]:
        raise _damaged(path, "the checksum of its header does not match")
    _, version, algorithm, block_size, state, size, checksum, point_length, point = _HEADER.unpack_from(page)
    if version != VERSION or algorithm != _ALGORITHM:
        raise ReplicaError(f"digest file {path}", f"format {version}.{algorithm} is unknown", "update this program")
    if state != _COMPLETE and not (unfinished and state == _INCOMPLETE):
        raise _damaged(path, "it was never completed")
    if not 4 * KIB <= block_size <= _LARGEST_BLOCK or block_size & (block_size - 1) or point_length > 256:
        raise _damaged(path, "its header makes no sense")
    try:
        name = point[:point_length].decode()
    except UnicodeDecodeError as exc:
        raise _damaged(path, "its header makes no sense") from exc
    header = DigestHeader(name, size, block_size, checksum, complete=state == _COMPLETE)
    if os.fstat(fd).st_size != HEADER_BYTES + header.blocks * DIGEST_BYTES:
        raise _damaged(path, "its length does not fit its disk size")
    return header


def _damaged(path: Path, why: str) -> ReplicaError:
    return ReplicaError(f"digest file {path}", why, "take the other copy, or rebuild the digests from the replica")


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ReplicaError(f"read digest file {path}", exc.strerror or str(exc)) from exc


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DatastoreError(f"write digest file {path}", exc.strerror or str(exc)) from exc
