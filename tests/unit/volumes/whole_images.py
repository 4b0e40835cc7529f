"""Images: bytes of whole disks and volumes, the programs that make them, and damage to them."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from understudy.model.extent import Extent
from understudy.volumes import Unfit

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
DAMAGED_BYTES = 60


class BytesImage:
    """An image in memory."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytes(data)

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > len(self.data):
            raise Unfit("outside of the image")
        return self.data[offset : offset + length]


def run(*command: str | Path, stdin: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """What a program prints."""
    done = subprocess.run(list(map(str, command)), input=stdin, capture_output=True, text=True, check=False,
                          env={**ENVIRONMENT, **(env or {})}, timeout=120)  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def empty(path: Path, size: int) -> Path:
    with path.open("wb") as handle:
        handle.truncate(size)
    return path


def patched(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    """A copy with bytes written at offsets."""
    copy = bytearray(data)
    for offset, text in changes:
        copy[offset : offset + len(text)] = text
    return bytes(copy)


def damaged(data: bytes, seed: int, places: Sequence[Extent]) -> bytes:
    """A copy with random bytes at random offsets in ``places``."""
    chance = random.Random(seed)
    chosen = chance.choices(places, weights=[item.length for item in places], k=DAMAGED_BYTES)
    changes = {item.start + chance.randrange(item.length): chance.randbytes(1) for item in chosen}
    parts: list[memoryview | bytes] = []
    begin = 0
    for offset in sorted(changes):
        parts += [memoryview(data)[begin:offset], changes[offset]]
        begin = offset + 1
    return b"".join([*parts, memoryview(data)[begin:]])


def refused(read: Callable[[], object]) -> bool:
    """Whether the volume is refused; any other error is the test's failure."""
    try:
        read()
    except Unfit:
        return True
    return False
