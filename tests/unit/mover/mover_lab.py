"""What the mover's tests share: images made by QEMU's own tools, a layer in a raw file, two-way comparison."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from understudy.model.extent import Extent
from understudy.mover.api import NbdSource, OpenExport
from understudy.mover.exports import Exports
from understudy.storage import Buffer
from understudy.units import KIB


def run(*command: str | Path) -> str:
    """Run a tool; its output. A failure fails the test with what it said."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def make_image(path: Path, size: int, backing: Path | None = None) -> Path:
    """An empty qcow2 image."""
    more = ("-b", backing, "-F", "qcow2") if backing else ()
    run("qemu-img", "create", "-q", "-f", "qcow2", *more, path, str(size))
    return path


def write(image: Path, seed: int, *places: tuple[int, int]) -> None:
    """Write random bytes, different ones for each seed, at (offset, length) pairs."""
    pattern = image.with_name(f"{image.name}.pattern")
    pattern.write_bytes(random.Random(seed).randbytes(256 * KIB))
    io(image, *(f"write -q -s {pattern} {offset} {length}" for offset, length in places))
    pattern.unlink()


def io(image: Path, *commands: str, image_format: str = "qcow2") -> None:
    """Commands of qemu-io."""
    words = [word for command in commands for word in ("-c", command)]
    said = run("qemu-io", "-d", "unmap", "-f", image_format, *words, image)
    assert "error" not in said.lower(), said
    assert "failed" not in said.lower(), said


def add_bitmap(image: Path, name: str) -> None:
    """Start to track changes."""
    run("qemu-img", "bitmap", "--add", image, name)


def lie(image: Path, *offsets: int) -> None:
    """Change the byte at each offset of a qcow2 image behind QEMU's back: no dirty bitmap knows of it."""
    areas = json.loads(run("qemu-img", "map", "--output=json", image))
    with image.open("r+b") as file:
        for offset in offsets:
            (area,) = [area for area in areas if area["start"] <= offset < area["start"] + area["length"]]
            place = area["offset"] + offset - area["start"]
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0xFF]))


def same_content(left: Path, left_format: str, right: Path, right_format: str) -> bool:
    """Whether two images show the same bytes."""
    command = ["qemu-img", "compare", "-f", left_format, "-F", right_format, str(left), str(right)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


@contextmanager
def served(directory: Path, image: Path, image_format: str = "qcow2", bitmap: str = "") -> Iterator[NbdSource]:
    """The image served by qemu-nbd inside the context."""
    exports = Exports(directory)
    try:
        yield exports.open(OpenExport(str(image), image_format, bitmap, "test"))[1]
    finally:
        exports.close_all()


class RawLayer:
    """A layer in a raw file that already holds what the layers below show; counts what is done to it.

    :param below: content below; without it the layer stands alone.
    """

    def __init__(self, path: Path, size: int, below: bytes = b"") -> None:
        self.path = path
        self.size = size
        path.write_bytes(below[:size].ljust(size, b"\0"))
        self.written = 0
        self.zeroed = 0
        self.calls: list[tuple[str, int, int]] = []
        self.complete: list[Extent] = []
        self.finished = False
        self._lock = threading.Lock()

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write."""
        self._note("write", offset, len(data))
        self.written += len(data)
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def zero(self, offset: int, length: int) -> None:
        """Zero."""
        self._note("zero", offset, length)
        self.zeroed += length
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(length))

    def checkpoint(self, complete: Sequence[Extent]) -> None:
        """Note what is called complete."""
        assert not self.finished
        self.complete += complete

    def finish(self) -> None:
        """Finish."""
        assert not self.finished
        self.finished = True

    def _note(self, act: str, offset: int, length: int) -> None:
        end = offset + length
        assert length > 0
        assert offset % (64 * KIB) == 0
        assert end % (64 * KIB) == 0 or end == self.size
        assert end <= self.size
        assert not self.finished
        with self._lock:
            self.calls.append((act, offset, length))
