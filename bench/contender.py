"""Contender: a pair of movers that copies the same disks again and again over the same line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.images import Filler, make_image
from bench.lines import Line
from bench.movers import Copied, MoverCopy, costs
from bench.nbd_peer import Server, served
from bench.tools import check_same
from understudy.model.job import Compression
from understudy.units import MIB

CHECKED = "every byte of the first copy, with qemu-img compare"


@dataclass(frozen=True)
class Sources:
    """Images of ``size`` bytes each, full of data, and the servers where they are read."""

    images: tuple[Path, ...]
    servers: tuple[Server, ...]
    size: int

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self.size * len(self.images)


@contextmanager
def sources(place: Path, count: int, size: int, filler: Filler, line: Line) -> Iterator[Sources]:
    """New images, served on the line's near host; removed at the end."""
    images = tuple(place / f"{count}-source-{number}.qcow2" for number in range(count))
    with ExitStack() as stack:
        servers = []
        for number, image in enumerate(images):
            stack.callback(image.unlink, missing_ok=True)
            make_image(image, size, size, filler, seed=number)
            servers.append(stack.enter_context(served(image, "-r", inside=line.near)))
        yield Sources(images, tuple(servers), size)


@dataclass
class Contender:
    """Copies ``found``, each time into a new replica; the content of the first copy is compared.

    :ivar copies: what was measured so far.
    """

    place: Path
    found: Sources
    compression: Compression
    line: Line
    copies: list[Copied] = field(default_factory=list)

    def copy(self) -> Copied:
        """Copy once."""
        copy = MoverCopy(self.place / "copy", self.found.servers, self.found.size, self.compression, self.line)
        try:
            copied = copy.run()
            if not self.copies:
                for source, image in zip(self.found.images, copy.images(), strict=True):
                    check_same(source, image)
        finally:
            copy.forget()
        self.copies.append(copied)
        return copied

    def rate(self) -> float:
        """Copy once; MiB of the sources per second, until the point was published."""
        return self.found.total / MIB / self.copy().taken.seconds

    def details(self) -> dict[str, list[float]]:
        """Details of a row."""
        taken = [copied.taken for copied in self.copies]
        return {
            "ours_s": [one.seconds for one in taken], "ours_cpu_s": [one.cpu for one in taken],
            "ours_sending_s": [copied.sending for copied in self.copies], **costs(self.copies),
        }  # fmt: skip
