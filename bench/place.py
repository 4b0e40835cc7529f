"""Place: a private directory in memory for everything that is read or written while the clock runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.tools import BenchError
from understudy.units import format_size

MEMORY = Path("/dev/shm")


@contextmanager
def memory_place(needed: int) -> Iterator[Path]:
    """A new directory in memory, which the hypervisor's user may enter; removed at the end.

    :param needed: bytes that the rows need at most.
    :raises BenchError: if there is not enough memory.
    """
    free = min(shutil.disk_usage(MEMORY).free, _available())
    if free < needed:
        raise BenchError(
            f"{MEMORY}: {format_size(needed)} are needed and {format_size(free)} are free; use smaller sizes or --only"
        )
    with tempfile.TemporaryDirectory(prefix="understudy-bench-", dir=MEMORY) as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
