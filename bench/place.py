"""Place: a private directory in memory for everything that is read or written while the clock runs."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.tools import BenchError
from understudy.units import format_size

MEMORY = Path("/dev/shm")
_PREFIX = "understudy-benchmark-"


@contextmanager
def memory_place(needed: int) -> Iterator[Path]:
    """A new directory in memory, which the hypervisor's user may enter; removed at the end.

    :param needed: bytes that the rows need at most.
    :raises BenchError: if there is not enough memory.
    """
    _sweep()
    free = min(shutil.disk_usage(MEMORY).free, _available())
    if free < needed:
        raise BenchError(
            f"{MEMORY}: {format_size(needed)} are needed and {format_size(free)} are free; use smaller sizes or --only"
        )
    made = Path(tempfile.mkdtemp(dir=MEMORY))
    lock = _locked(made)
    # Only now has it a name that others sweep.
    place = made.rename(MEMORY / f"{_PREFIX}{made.name}")
    try:
        place.chmod(0o755)
        yield place
    finally:
        shutil.rmtree(place)
        if lock is not None:
            os.close(lock)


def _sweep() -> None:
    """Remove the directories of benchmarks that were killed: memory is dear."""
    for found in MEMORY.glob(f"{_PREFIX}*"):
        lock = _locked(found)
        if lock is not None:
            shutil.rmtree(found)
            os.close(lock)


def _locked(directory: Path) -> int | None:
    """A handle that locks the directory for as long as it is open and this process lives; None if it is in use."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
