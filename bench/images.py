"""Images: source disks with data of a known kind."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

from bench.tools import run
from understudy.units import KIB, MIB

Filler = Callable[[random.Random, int], bytes]
#: Data lies in runs of this length, spread evenly over a disk that is larger than its data.
RUN = 4 * MIB
HALVING_PIECE = 64 * KIB


def mostly_random(dice: random.Random, length: int) -> bytes:
    """Bytes of which seven eighths cannot be compressed; no zeros of any length."""
    noise = dice.randbytes(length // 8 * 7)
    return noise + text(dice, length - len(noise))


def text(dice: random.Random, length: int) -> bytes:
    """Words of a small language in random order: shrinks to about a third."""
    page = _text()
    start = dice.randrange(len(page) - length)
    return page[start : start + length]


def halving(dice: random.Random, length: int) -> bytes:
    """Text and noise, mixed so that zstd-1 makes half of it."""
    noise = HALVING_PIECE * 23 // 100
    pieces = (dice.randbytes(noise) + text(dice, HALVING_PIECE - noise) for _ in range(length // HALVING_PIECE))
    return b"".join(pieces)


@functools.cache
def _text() -> bytes:
    dice = random.Random(1)
    vocabulary = [dice.randbytes(dice.randint(2, 6)).hex().encode() for _ in range(2000)]
    return b" ".join(dice.choices(vocabulary, k=2 * MIB))


def make_image(path: Path, size: int, data: int, filler: Filler, seed: int = 7) -> None:
    """Make a qcow2 image of virtual size ``size`` that holds ``data`` bytes."""
    raw = path.with_suffix(".raw")
    dice = random.Random(seed)
    runs = max(1, data // RUN)
    step = size // runs // (64 * KIB) * 64 * KIB
    try:
        with raw.open("wb") as file:
            file.truncate(size)
            for number in range(runs):
                file.seek(number * step)
                for _ in range(min(RUN, data) // MIB):
                    file.write(filler(dice, MIB))
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    finally:
        raw.unlink(missing_ok=True)


def add_bitmap(image: Path, name: str) -> None:
    """Start to track changes."""
    run("qemu-img", "bitmap", "--add", image, name)
