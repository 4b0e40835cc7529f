"""The process that looks into file systems of guests: ``python -m understudy.mover.survey_child [CREDENTIALS]``.

What a guest wrote may be hostile. So it connects to the disks first, gives up every right, and only then looks at a
byte; what it may take of memory and time is limited, and whoever started it ends it when it takes longer (G10). What it
answers is not believed either, see :mod:`understudy.mover.survey_answer`.

Standard input is an encoded :class:`understudy.mover.api.SurveyDisks`, standard output an encoded
:class:`understudy.mover.api.SurveyedDisks`.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

from understudy.certificates import Credentials
from understudy.errors import UnderstudyError
from understudy.mover.reader import Source
from understudy.mover.survey_values import decode_request, encode_answer
from understudy.units import GIB, MIB
from understudy.volumes.ext import open_ext
from understudy.volumes.image import CachedDisk
from understudy.volumes.lvm import logical_volumes
from understudy.volumes.ntfs import open_ntfs
from understudy.volumes.partitions import partitions
from understudy.volumes.signatures import EXT, NTFS, XFS, recognise
from understudy.volumes.survey import Disk, Readers, Wanted, survey
from understudy.volumes.swap import swap_finding
from understudy.volumes.xfs import open_xfs

#: Data of the process; it needs about 60 MiB with the cache of one disk, which all disks share.
MEMORY = 512 * MIB
ADDRESSES = 4 * GIB
CPU_S, CPU_GRACE_S = 240, 5
#: Descriptors that can be opened: none, since those below are in use. Others that are open stay so.
FILES = 3
CACHE = 32 * MIB
_CODECS = ("utf-16-le", "latin-1")
_NOBODY = 65534
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWNET = 0x40000000

READERS = Readers(
    partitions, recognise, swap_finding, logical_volumes, {EXT: open_ext, NTFS: open_ntfs, XFS: open_xfs}
)


def main(arguments: list[str]) -> int:
    """Answer the request; 1, with the reason on standard error, if that is not possible."""
    asker = os.getppid()
    credentials = Credentials(Path(arguments[0])) if arguments else None
    try:
        request = decode_request(sys.stdin.buffer.read())
        # Source looks at the size and, over TLS, at who the server lets in.
        sources = [Source(disk.source, disk.size, credentials=credentials) for disk in request.disks]
    except UnderstudyError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    _load_all()
    give_up_rights()
    if os.getppid() != asker:
        return 1
    cache = CACHE // max(1, len(sources))
    disks = [Disk(disk.name, CachedDisk(source.planner, disk.size, cache))
             for disk, source in zip(request.disks, sources, strict=True)]
    wanted = Wanted(request.swap, request.masks, request.free, request.quiesced, request.former)
    try:
        sys.stdout.buffer.write(encode_answer(survey(disks, wanted, READERS)))
    except MemoryError:
        sys.stderr.write(f"it takes more than {MEMORY // MIB} MiB of memory\n")
        return 1
    sys.stdout.buffer.flush()
    return 0


def _load_all() -> None:
    """Python reads some files when they are first needed; later it cannot."""
    encode_answer(())
    for name in _CODECS:
        codecs.lookup(name)


def give_up_rights() -> None:
    """From now on: no user's rights, no network, no new files or sockets, no processes, little memory, little time, and
    an end with whoever started it.

    :raises OSError: if a right cannot be given up; then nothing may be looked at.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a container may forbid it; the connections are made, no others are needed
            _checked(libc.unshare(_CLONE_NEWNET), "unshare")
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    limits = {resource.RLIMIT_DATA: MEMORY, resource.RLIMIT_AS: ADDRESSES, resource.RLIMIT_NOFILE: FILES,
              resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    # The signal of the first limit says why; of the second, the kernel kills.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + CPU_GRACE_S))
    # Last, for a change of user takes it back.
    _checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


if __name__ == "__main__":
    # Not sys.exit(): taking the interpreter apart takes an eighth of the time of all, and everything is written.
    os._exit(main(sys.argv[1:]))
