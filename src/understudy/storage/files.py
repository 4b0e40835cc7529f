"""How do files become durable, and what do the operating system's errors mean to an operator?"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from understudy.errors import DatastoreError

_REASONS = {
    errno.ENOSPC: ("the datastore is full", "free space on it, or use another datastore"),
    errno.EDQUOT: ("the datastore's quota is used up", "raise the quota, or use another datastore"),
    errno.EROFS: ("the datastore is read-only", "mount it writable"),
    errno.EACCES: ("permission denied", "let this user write there"),
    errno.EPERM: ("operation not permitted", "let this user write there"),
    errno.EIO: ("input/output error", "check the storage below the datastore"),
    errno.ESTALE: ("stale file handle", "mount the datastore again"),
    errno.ENOENT: ("no such file or directory", "check that the datastore is mounted"),
    errno.ENOTDIR: ("a part of the path is no directory", "check the datastore's path"),
}


def datastore_error(act: str, exc: OSError) -> DatastoreError:
    """``exc``, which stopped ``act``, in the words of an operator."""
    why, todo = _REASONS.get(exc.errno or 0, (os.strerror(exc.errno) if exc.errno else str(exc), ""))
    if isinstance(exc.filename, str | bytes):
        why += f" ({os.fsdecode(exc.filename)})"
    return DatastoreError(act, why, todo)


@contextmanager
def datastore_errors(act: str) -> Iterator[None]:
    """Turn every OSError of the block into a DatastoreError that names ``act``."""
    try:
        yield
    except OSError as exc:
        raise datastore_error(act, exc) from exc


def fsync_path(path: Path) -> None:
    """Make a file's content, or a directory's entries, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; the system may take less per call."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def write_durable(path: Path, data: bytes, mode: int) -> None:
    """Write a new file, or a new content, and fsync it; not atomic."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.fchmod(fd, mode)
        pwrite_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_durable(path: Path, temporary: Path, data: bytes, mode: int) -> None:
    """Give ``path`` a new content in one rename, by way of ``temporary`` beside it."""
    write_durable(temporary, data, mode)
    temporary.replace(path)
    fsync_path(path.parent)


def remove_files(paths: list[Path]) -> None:
    """Remove files, durably; missing ones are no error.

    :raises OSError: if one cannot be removed.
    """
    for path in paths:
        path.unlink(missing_ok=True)
    for directory in sorted({path.parent for path in paths}):
        if directory.is_dir():
            fsync_path(directory)


def make_directory(path: Path) -> None:
    """Make one directory, durable, that any user may pass but not list; an existing one is no error."""
    try:
        path.mkdir(mode=0o711)
    except FileExistsError:
        return
    path.chmod(0o711)
    fsync_path(path.parent)
