"""Which processes of ours are there, and have they all ended?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from understudy.lab.processes import ProcessIdentity

_OUR_PROGRAMS = ("understudy.mover", "understudy.guests", "-m understudy", "qemu-nbd", "qemu-img", "nbdkit")
_SOON_S = 30.0


def our_processes(mark: Path) -> list[str]:
    """Command lines of our programs that name a path below ``mark``."""
    lines = [b" ".join(words).decode(errors="replace") for pid, words in _all() if pid != os.getpid()]
    return [line for line in lines if str(mark) in line and any(program in line for program in _OUR_PROGRAMS)]


def wait_gone(mark: Path) -> None:
    """The movers and watchdogs of a killed controller end by themselves, soon."""
    deadline = time.monotonic() + _SOON_S
    while found := our_processes(mark):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def proxies(home: Path, name: str) -> list[ProcessIdentity]:
    """The running proxy of that name, of the installation at ``home``; none if it does not run."""
    marks, here = {b"understudy.mover", b"--name", name.encode()}, str(home).encode()
    found = [ProcessIdentity.of(pid) for pid, words in _all()
             if marks <= set(words) and any(word.startswith(here) for word in words)]  # fmt: skip
    return [identity for identity in found if identity is not None]


def _all() -> Iterator[tuple[int, list[bytes]]]:
    """Pids, and the words of their command lines."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(entry.parent.name), entry.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
