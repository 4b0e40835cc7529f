"""Memory: the largest resident set of mover processes while they work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL_S = 0.1
_MOVER = b"understudy.mover"


class MemoryProbe:
    """Looks at processes inside its context and keeps the largest values seen, in MiB.

    :param find: the processes to look at, or what finds them, asked each time.
    :ivar peak: largest resident set of one process, as the kernel recorded it (VmHWM).
    :ivar private: largest part of it that is no file and no shared memory; sampled.
    """

    def __init__(self, find: Callable[[], Iterable[int]] | Collection[int]) -> None:
        self.peak = 0.0
        self.private = 0.0
        self._find = find if callable(find) else lambda: find
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-probe", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._end.wait(INTERVAL_S):
            self._look()

    def _look(self) -> None:
        for pid in self._find():
            found = sizes(pid)
            self.peak = max(self.peak, found.get("VmHWM", 0.0))
            self.private = max(self.private, found.get("RssAnon", 0.0))


def sizes(pid: int | str) -> dict[str, float]:
    """Sizes of a process in MiB, by the kernel's names; empty if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in fields}


def movers_below(pid: int) -> list[int]:
    """The mover processes that a process started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
        return [child for child in children if _MOVER in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")]
    except (FileNotFoundError, ProcessLookupError):
        return []
