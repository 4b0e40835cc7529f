"""The rows that copy one image: movers against nbdcopy, and a disk of many terabytes that is nearly empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.images import Filler, add_bitmap, make_image, mostly_random, text
from bench.movers import Copied, MoverCopy
from bench.nbd_peer import copy_seconds, read_seconds, served
from bench.result import Goal, Row, Unit, ratios
from bench.settings import Settings
from bench.tools import check_same, interleaved
from understudy.model.job import Compression
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource
from understudy.units import GIB, MIB, format_size

#: A mover may use this much memory, whatever the size of the disk.
MEMORY_GOAL = Goal(256)
BITMAP = "b0"


@dataclass(frozen=True)
class Contest:
    """One way to copy that is held against nbdcopy."""

    name: str
    title: str
    compression: Compression | None
    goal: Goal | None = None


LOCAL = Contest("copy-local", "full copy by one mover / nbdcopy", None, Goal(0.9, at_least=True))
WIRE = Contest("copy-wire", "full copy by two movers, compression none / nbdcopy", Compression.NONE,
               Goal(0.65, at_least=True))  # fmt: skip
ZSTD = Contest("copy-wire-zstd", "two movers, zstd, data that shrinks / nbdcopy", Compression.ZSTD)
LZ4 = Contest("copy-wire-lz4", "two movers, lz4, data that shrinks / nbdcopy", Compression.LZ4)
PLAIN = Contest("copy-wire-plain", "two movers, none, data that shrinks / nbdcopy", Compression.NONE)

Group = Callable[[Settings, Path], Iterator[Row]]


def random_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """Copies of data that cannot be compressed, and reading it again without finding a change."""
    contests = [contest for contest in (LOCAL, WIRE) if settings.wants(*_with_memory(contest.name))]
    scan = settings.wants(*_with_memory("scan"))
    if not contests and not scan:
        return
    with _source(place, settings.size, settings.size, mostly_random) as (image, socket):
        if contests:
            yield from _contend(settings, place, image, socket, contests)
        if scan:
            yield from _scan(settings, place, image, socket)


def text_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """Copies of data that shrinks."""
    contests = [item for item in (PLAIN, ZSTD, LZ4) if settings.wants(*_with_memory(item.name))]
    if not contests:
        return
    with _source(place, settings.size, settings.size, text) as (image, socket):
        yield from _contend(settings, place, image, socket, contests)


def huge_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """The first run, and an incremental run without changes, of a huge disk with little data."""
    if not settings.wants(*_with_memory("huge-first", "huge-empty")):
        return
    with _source(place, settings.huge_disk, settings.huge_data, mostly_random, tracked=True) as (image, socket):
        copy = MoverCopy(place / "huge", NbdSource(str(socket), "", f"qemu:dirty-bitmap:{BITMAP}"), settings.huge_disk)
        fulls: list[Copied] = []
        empties: list[Copied] = []
        for number in range(settings.runs):
            copy.forget()
            fulls.append(copy.run())
            if number == 0:
                check_same(image, copy.image())
            empties.append(copy.run(TransferMode.INCREMENTAL))
        copy.forget()
    shown = f"{format_size(settings.huge_disk)} disk, {format_size(settings.huge_data)} of data"
    yield _seconds("huge-first", f"first run of a {shown}", fulls, "every byte of the image, with qemu-img compare")
    yield _seconds("huge-empty", f"planning: nothing changed on a {shown}", empties, "")
    yield memory_row("huge-first", [copied.peak for copied in fulls], [copied.private for copied in fulls])
    yield memory_row("huge-empty", [copied.peak for copied in empties], [copied.private for copied in empties])


def memory_row(name: str, peaks: list[float], private: list[float]) -> Row:
    """The peak resident set of the movers in another row."""
    title = f"largest resident set of a mover in {name}"
    return Row(f"memory-{name}", title, Unit.MEBIBYTES, tuple(peaks), MEMORY_GOAL, {"private_mib": private})


def _with_memory(*names: str) -> tuple[str, ...]:
    """The rows that come with measuring these."""
    return (*names, *(f"memory-{name}" for name in names))


@contextmanager
def _source(place: Path, size: int, data: int, filler: Filler, *, tracked: bool = False) -> Iterator[tuple[Path, Path]]:
    """A new image and the socket where it is served; the image is removed at the end."""
    image = place / "source.qcow2"
    make_image(image, size, data, filler)
    if tracked:
        add_bitmap(image, BITMAP)
    try:
        with served(image, "-r", *(("-B", BITMAP) if tracked else ())) as socket:
            yield image, socket
    finally:
        image.unlink()


def _contend(settings: Settings, place: Path, image: Path, socket: Path, contests: list[Contest]) -> Iterator[Row]:
    """Run nbdcopy and every contest in turns."""
    measured: dict[str, list[Copied]] = {contest.name: [] for contest in contests}
    target = place / "nbdcopy.qcow2"

    def nbdcopy() -> float:
        seconds = copy_seconds(socket, target, settings.size)
        target.unlink()
        return seconds

    def runner(contest: Contest) -> Callable[[], float]:
        return lambda: _measure(contest, place, image, socket, settings.size, measured[contest.name])

    peer, *own = interleaved(settings.runs, [nbdcopy, *(runner(contest) for contest in contests)])
    for contest, seconds in zip(contests, own, strict=True):
        copies = measured[contest.name]
        yield _contest_row(contest, settings, peer, seconds, copies)
        yield memory_row(contest.name, [copied.peak for copied in copies], [copied.private for copied in copies])


def _measure(contest: Contest, place: Path, image: Path, socket: Path, size: int, measured: list[Copied]) -> float:
    """One copy into a new replica; the first one's content is compared."""
    copy = MoverCopy(place / "copy", NbdSource(str(socket), "", ""), size, contest.compression)
    try:
        copied = copy.run()
        if not measured:
            check_same(image, copy.image())
    finally:
        copy.forget()
    measured.append(copied)
    return copied.seconds


def _contest_row(
    contest: Contest, settings: Settings, peer: list[float], seconds: list[float], copies: list[Copied]
) -> Row:
    details = {
        "nbdcopy_s": peer,
        "ours_s": seconds,
        "nbdcopy_gib_per_s": [settings.size / GIB / value for value in peer],
        "ours_gib_per_s": [settings.size / GIB / value for value in seconds],
    }
    if contest.compression is not None:
        details["wire_mib"] = [copied.progress.wire / MIB for copied in copies]
    for part in copies[0].progress.busy or {}:
        details[f"busy_{part}_s"] = [(copied.progress.busy or {}).get(part, 0.0) for copied in copies]
    checked = "every byte of the first copy, with qemu-img compare"
    return Row(contest.name, contest.title, Unit.RATIO, ratios(peer, seconds), contest.goal, details, checked)


def _scan(settings: Settings, place: Path, image: Path, socket: Path) -> Iterator[Row]:
    """A digest scan that finds no change, against nbdcopy reading into nothing."""
    copy = MoverCopy(place / "scan", NbdSource(str(socket), "", ""), settings.size)
    scans: list[Copied] = []

    def scan() -> float:
        scans.append(copy.run(TransferMode.DIGEST_SCAN))
        return scans[-1].seconds

    try:
        copy.run()
        peer, own = interleaved(settings.runs, [lambda: read_seconds(socket), scan])
        check_same(image, copy.image())
    finally:
        copy.forget()
    title = "digest scan that finds no change / nbdcopy to null:"
    yield Row("scan", title, Unit.RATIO, ratios(peer, own), None, {"nbdcopy_s": peer, "ours_s": own},
              "every byte of the last point, with qemu-img compare")  # fmt: skip
    yield memory_row("scan", [copied.peak for copied in scans], [copied.private for copied in scans])


def _seconds(name: str, title: str, copies: list[Copied], checked: str) -> Row:
    return Row(name, title, Unit.SECONDS, tuple(copied.seconds for copied in copies), None, {}, checked)


NAMES = _with_memory(*(item.name for item in (LOCAL, WIRE, PLAIN, ZSTD, LZ4)), "scan", "huge-first", "huge-empty")
GROUPS: tuple[Group, ...] = (random_rows, text_rows, huge_rows)
