"""Who owns the replica, and is the owner's attempt the newest one?"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from understudy.errors import DatastoreError, Fenced, ReplicaError
from understudy.storage.files import datastore_errors, fsync_path, make_directory
from understudy.storage.records.place import ReplicaPlace

_CONTENT = re.compile(rb"attempt (\d{1,20})\n")


def _lock_path(place: ReplicaPlace) -> Path:
    return place.root / ".lock"


def last_attempt(place: ReplicaPlace) -> int:
    """The highest attempt number seen, 0 if none.

    :raises ReplicaError: if the lock file is damaged.
    """
    with datastore_errors(f"read the lock of {place.what}"):
        try:
            content = _lock_path(place).read_bytes()
        except FileNotFoundError:
            return 0
    return _parse(place, content)


@contextmanager
def own(place: ReplicaPlace, attempt: int) -> Iterator[int]:
    """Own the replica, making its directory if need be; gives the descriptor that carries the lock.

    A child process that inherits the descriptor keeps the replica locked until it ends too, so that nobody meets a
    ``qemu-img`` whose parent was killed.

    :raises Fenced: if another process or thread owns it, or ``attempt`` is lower than one seen before.
    """
    with datastore_errors(f"lock {place.what}"):
        fd = _open_locked(place)
    try:
        with datastore_errors(f"lock {place.what}"):
            _record_attempt(place, fd, attempt)
        yield fd
    finally:
        os.close(fd)


def _open_locked(place: ReplicaPlace) -> int:
    if not place.root.parent.is_dir():
        raise DatastoreError(f"lock {place.what}", "the datastore directory does not exist",
                             "check that the datastore is mounted")
    while True:
        make_directory(place.root)
        try:
            fd = os.open(_lock_path(place), os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # its owner is removing the replica just now
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(place, fd):
                return fd
        except BlockingIOError as exc:
            os.close(fd)
            raise Fenced(f"lock {place.what}", "another session or command owns it",
                         "wait until that one ends") from exc
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def _is_current(place: ReplicaPlace, fd: int) -> bool:
    """Whether the locked file still has its name: the owner before may have removed the replica."""
    try:
        return os.path.samestat(os.fstat(fd), _lock_path(place).stat())
    except FileNotFoundError:
        return False


def _record_attempt(place: ReplicaPlace, fd: int, attempt: int) -> None:
    seen = _parse(place, os.pread(fd, 64, 0))
    if attempt < seen:
        raise Fenced(f"lock {place.what}", f"attempt {attempt} is older than attempt {seen}, which was here before")
    if attempt > seen:
        os.pwrite(fd, b"attempt %020d\n" % attempt, 0)
        os.fsync(fd)
        fsync_path(place.root)


def _parse(place: ReplicaPlace, content: bytes) -> int:
    if not content:
        return 0
    match = _CONTENT.fullmatch(content)
    if match is None:
        raise ReplicaError(f"lock {place.what}", "the file .lock is damaged",
                           "make sure that no session uses the replica, then delete this file")
    return int(match[1])


def remove_lock(place: ReplicaPlace) -> None:
    """Remove the lock file while owning it, and the replica's directory, empty but for it.

    :raises OSError: if they cannot be removed.
    """
    _lock_path(place).unlink(missing_ok=True)
    try:
        place.root.rmdir()
    except OSError as exc:
        if exc.errno != errno.ENOTEMPTY:  # who waited for the lock may have begun a new replica already
            raise
    fsync_path(place.root.parent)
