"""The controller lock: at most one process is the controller of a home."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from understudy.errors import DatabaseError

FILE_NAME = "controller.lock"


class ControllerLock:
    """Held from :func:`try_acquire` until :meth:`release`, or the end of the process however it ends."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def release(self) -> None:
        """Let another process become the controller; may be called again."""
        if self._handle >= 0:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> ControllerLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def try_acquire(home: Path) -> ControllerLock | None:
    """Become the controller of ``home``, or None when another process is.

    :raises DatabaseError: if the lock file cannot be made.
    """
    handle = _open(home)
    # holder() asks by a shared lock that it drops at once: such a moment is not a controller, so try again.
    while not _lock(handle, fcntl.LOCK_EX):
        if not _lock(handle, fcntl.LOCK_SH):
            os.close(handle)
            return None
        fcntl.flock(handle, fcntl.LOCK_UN)
        time.sleep(0.002)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return ControllerLock(handle)


def holder(home: Path) -> int | None:
    """The process id of the controller of ``home``, or None when there is none.

    :raises DatabaseError: if the lock file cannot be opened.
    """
    handle = _open(home)
    try:
        # Between taking the lock and writing its number a controller is nameless for an instant.
        while not _lock(handle, fcntl.LOCK_SH):
            text = os.pread(handle, 32, 0).strip()
            if text.isdigit():
                return int(text)
            time.sleep(0.002)
        return None
    finally:
        os.close(handle)


def _open(home: Path) -> int:
    try:
        # Not inheritable: a child that outlives the controller must not keep the lock.
        return os.open(home / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise DatabaseError(f"open {home / FILE_NAME}", str(exc.strerror), "check --home and its permissions") from exc


def _lock(handle: int, mode: int) -> bool:
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
