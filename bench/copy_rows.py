"""The rows that copy one image: movers against nbdcopy, and a disk of many terabytes that is nearly empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import nbd_peer
from bench.contender import CHECKED
from bench.cpu import Taken
from bench.images import Filler, add_bitmap, make_image, mostly_random, text
from bench.lines import UNIX, loopback
from bench.movers import Copied, MoverCopy, costs
from bench.nbd_peer import Server, served
from bench.result import Goal, Row, Unit, ratios
from bench.settings import Settings
from bench.tools import check_same, interleaved
from understudy.model.job import Compression
from understudy.model.transfer import TransferMode
from understudy.units import GIB, format_size

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
    tls: bool = False


LOCAL = Contest("copy-local", "full copy by one mover / nbdcopy", None, Goal(0.9, at_least=True))
WIRE = Contest("copy-wire", "full copy by two movers, compression none / nbdcopy", Compression.NONE,
               Goal(0.65, at_least=True))  # fmt: skip
TLS = Contest("copy-tls", "two movers, TLS, compression none / nbdcopy on Unix sockets", Compression.NONE,
              Goal(0.6, at_least=True), tls=True)  # fmt: skip
ZSTD = Contest("copy-wire-zstd", "two movers, zstd, data that shrinks / nbdcopy", Compression.ZSTD)
LZ4 = Contest("copy-wire-lz4", "two movers, lz4, data that shrinks / nbdcopy", Compression.LZ4)
SCAN, HUGE, PLANNING = "scan", "huge-first", "huge-empty"
PLAIN = Contest("copy-wire-plain", "two movers, none, data that shrinks / nbdcopy", Compression.NONE)

Group = Callable[[Settings, Path], Iterator[Row]]


@dataclass(frozen=True)
class Source:
    """An image, and the server where it is read."""

    image: Path
    server: Server


def random_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """Copies of data that cannot be compressed, and reading it again without finding a change."""
    contests = [contest for contest in (LOCAL, WIRE, TLS) if settings.wants(*_with_memory(contest.name))]
    scan = settings.wants(*_with_memory(SCAN))
    if not contests and not scan:
        return
    with _source(place, settings.size, settings.size, mostly_random) as source:
        if contests:
            yield from _contend(settings, place, source, contests)
        if scan:
            yield from _scan(settings, place, source)


def text_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """Copies of data that shrinks."""
    contests = [item for item in (PLAIN, ZSTD, LZ4) if settings.wants(*_with_memory(item.name))]
    if not contests:
        return
    with _source(place, settings.size, settings.size, text) as source:
        yield from _contend(settings, place, source, contests)


def huge_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """The first run, and an incremental run without changes, of a huge disk with little data."""
    if not settings.wants(*_with_memory(HUGE, PLANNING)):
        return
    with _source(place, settings.huge_disk, settings.huge_data, mostly_random, bitmap=BITMAP) as source:
        dirty_context = f"qemu:dirty-bitmap:{BITMAP}"
        copy = MoverCopy(place / "copy", [source.server], settings.huge_disk, dirty_context=dirty_context)
        fulls: list[Copied] = []
        empties: list[Copied] = []
        for number in range(settings.runs):
            copy.forget()
            fulls.append(copy.run())
            if number == 0:
                check_same(source.image, *copy.images())
            empties.append(copy.run(TransferMode.INCREMENTAL))
        copy.forget()
    shown = f"{format_size(settings.huge_disk)} disk, {format_size(settings.huge_data)} of data"
    yield _seconds(HUGE, f"first run of a {shown}", fulls, CHECKED)
    yield _memory(HUGE, fulls)
    yield _seconds(PLANNING, f"incremental, nothing changed on a {shown}, with its sample check", empties, "")
    yield _memory(PLANNING, empties)


def memory_row(name: str, peaks: list[float], private: list[float]) -> Row:
    """The peak resident set of the movers in another row."""
    title = f"largest resident set of a mover in {name}"
    return Row(f"memory-{name}", title, Unit.MEBIBYTES, tuple(peaks), MEMORY_GOAL, {"private_mib": private})


def _memory(name: str, copies: list[Copied]) -> Row:
    peaks, private = ([max(found.values()) for found in all_found] for all_found in (
        [copied.peaks for copied in copies], [copied.private for copied in copies]))  # fmt: skip
    return memory_row(name, peaks, private)


def _with_memory(*names: str) -> tuple[str, ...]:
    """The rows that come with measuring these."""
    return (*names, *(f"memory-{name}" for name in names))


@contextmanager
def _source(place: Path, size: int, data: int, filler: Filler, *, bitmap: str = "") -> Iterator[Source]:
    """A new image, served; removed at the end."""
    image = place / "source.qcow2"
    make_image(image, size, data, filler)
    if bitmap:
        add_bitmap(image, bitmap)
    try:
        with served(image, "-r", *(("-B", bitmap) if bitmap else ())) as server:
            yield Source(image, server)
    finally:
        image.unlink()


def _contend(settings: Settings, place: Path, source: Source, contests: list[Contest]) -> Iterator[Row]:
    """Run nbdcopy and every contest in turns."""
    measured: dict[str, list[Copied]] = {contest.name: [] for contest in contests}
    target = place / "nbdcopy.qcow2"

    def nbdcopy() -> Taken:
        taken = nbd_peer.copy(source.server, target, settings.size)
        target.unlink()
        return taken

    def runner(contest: Contest) -> Callable[[], Taken]:
        copy = MoverCopy(place / "copy", [source.server], settings.size, contest.compression,
                         loopback() if contest.tls else UNIX)  # fmt: skip
        return lambda: _measure(copy, source.image, measured[contest.name])

    peer, *_ = interleaved(settings.runs, [nbdcopy, *(runner(contest) for contest in contests)])
    for contest in contests:
        copies = measured[contest.name]
        yield _against_nbdcopy(contest, settings.size, peer, copies, CHECKED)
        yield _memory(contest.name, copies)


def _measure(copy: MoverCopy, image: Path, measured: list[Copied]) -> Taken:
    """One copy into a new replica; the first one's content is compared."""
    try:
        copied = copy.run()
        if not measured:
            check_same(image, *copy.images())
    finally:
        copy.forget()
    measured.append(copied)
    return copied.taken


def _scan(settings: Settings, place: Path, source: Source) -> Iterator[Row]:
    """A digest scan that finds no change, against nbdcopy reading into nothing."""
    copy = MoverCopy(place / "copy", [source.server], settings.size)
    scans: list[Copied] = []

    def scan() -> Taken:
        scans.append(copy.run(TransferMode.DIGEST_SCAN))
        return scans[-1].taken

    try:
        copy.run()
        peer, _ = interleaved(settings.runs, [lambda: nbd_peer.read(source.server), scan])
        check_same(source.image, *copy.images())
    finally:
        copy.forget()
    contest = Contest(SCAN, "digest scan that finds no change / nbdcopy to null:", None, Goal(0.8, at_least=True))
    yield _against_nbdcopy(contest, settings.size, peer, scans, "every byte of the last point, with qemu-img compare")
    yield _memory(SCAN, scans)


def _against_nbdcopy(contest: Contest, size: int, peer: list[Taken], copies: list[Copied], checked: str) -> Row:
    theirs = [taken.seconds for taken in peer]
    ours = [copied.taken.seconds for copied in copies]
    details = {
        "nbdcopy_s": theirs,
        "ours_s": ours,
        "nbdcopy_cpu_s": [taken.cpu for taken in peer],
        "ours_cpu_s": [copied.taken.cpu for copied in copies],
        "nbdcopy_gib_per_s": [size / GIB / seconds for seconds in theirs],
        "ours_gib_per_s": [size / GIB / seconds for seconds in ours],
        **costs(copies),
    }
    return Row(contest.name, contest.title, Unit.RATIO, ratios(theirs, ours), contest.goal, details, checked)


def _seconds(name: str, title: str, copies: list[Copied], checked: str) -> Row:
    seconds = tuple(copied.taken.seconds for copied in copies)
    return Row(name, title, Unit.SECONDS, seconds, None, costs(copies), checked)


NAMES = _with_memory(*(item.name for item in (LOCAL, WIRE, TLS, PLAIN, ZSTD, LZ4)), SCAN, HUGE, PLANNING)
GROUPS: tuple[Group, ...] = (random_rows, text_rows, huge_rows)
