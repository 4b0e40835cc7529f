"""Does a QEMU process have this image open?

QEMU marks what it does with an image by locks on single bytes of the file: from 100 on what it does, from 200 on what
it forbids others (``block/file-posix.c``, RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE). Any lock there means: in use.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from understudy.errors import Refused

_FIRST_BYTE = 100
_BYTES = 200
_FLOCK = struct.Struct("hhqqi0q")  # struct flock of 64-bit Linux


def _request(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, _FIRST_BYTE, _BYTES, 0)


def in_use(path: Path) -> bool:
    """Whether a QEMU process has the image open, for reading or writing; False if it does not exist.

    :raises OSError: if the file cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK))
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


@contextmanager
def kept_from_qemu(path: Path, act: str) -> Iterator[None]:
    """No QEMU process can open the image meanwhile.

    :raises Refused: if one has it open already.
    :raises OSError: if the file cannot be opened.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_WRLCK))
        except (BlockingIOError, PermissionError) as exc:
            raise used(act, path) from exc
        yield
    finally:
        os.close(fd)


def used(act: str, path: Path) -> Refused:
    """The error that says that ``path`` is in use."""
    return Refused(act, f"{path.parent.name}/{path.name} is in use by a virtual machine or another reader",
                   "stop the replica VM, or wait for the reader's end")
