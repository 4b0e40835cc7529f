"""Tools: other programs that the benchmark runs, and how they are timed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Word = str | Path
Value = TypeVar("Value")


class BenchError(Exception):
    """A row cannot be measured; says why."""


def run(*command: Word, timeout_s: float = 900) -> str:
    """Run a program that must succeed; its output.

    :raises BenchError: with the program's own words.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout_s,
                          env={**os.environ, "LC_ALL": "C.UTF-8"})  # fmt: skip
    if done.returncode != 0:
        raise BenchError(f"{' '.join(words)}: status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def timed(act: Callable[[], object]) -> float:
    """How many seconds ``act`` takes."""
    started = time.monotonic()
    act()
    return time.monotonic() - started


def interleaved(runs: int, contenders: Sequence[Callable[[], Value]]) -> list[list[Value]]:
    """Let every contender run ``runs`` times, in turns; the order changes, so that none always runs after another.

    :returns: for each contender its values, one for each run.
    """
    values: list[list[Value]] = [[] for _ in contenders]
    for number in range(runs):
        order = list(range(len(contenders)))
        for index in order if number % 2 == 0 else reversed(order):
            values[index].append(contenders[index]())
    return values


def check_same(left: Path, right: Path) -> None:
    """Whether two qcow2 images show the same bytes; they may be in use.

    :raises BenchError: if not: a fast copy that is wrong must not win.
    """
    run("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", left, right)
