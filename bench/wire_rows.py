"""The rows of two movers with TLS inside this machine: how fast they compress and send, alone and with many disks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbd
import zstandard

from bench.contender import CHECKED, Contender, Sources, sources
from bench.copy_rows import Group
from bench.images import Filler, mostly_random, text
from bench.lines import loopback
from bench.movers import BLOCK_SIZE, SOURCE, TARGET
from bench.result import Goal, Row, Unit, ratios
from bench.settings import Settings
from bench.tools import interleaved
from understudy.model.job import Compression
from understudy.units import MIB

ZSTD, ZSTD_RANDOM = "tls-zstd", "tls-zstd-random"
FOUR, FOUR_NONE = "four-disks", "four-disks-none"
MEMORY = {SOURCE: "memory-eight-disks-source", TARGET: "memory-eight-disks-target"}
NAMES = (ZSTD, ZSTD_RANDOM, FOUR, FOUR_NONE, *MEMORY.values())
ZSTD_GOAL, FOUR_GOAL = Goal(0.65, at_least=True), Goal(1.1, at_least=True)
MEMORY_GOAL = Goal(600)
#: The peer compresses so much at most: it is as fast in the first block as in the last.
SAMPLE = 512 * MIB
ZSTD_LEVEL = 1


def compressing_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """Copies with the default codec, against one thread that does nothing but compress."""
    if settings.wants(ZSTD):
        yield _against_zstd(settings, place, ZSTD, "data that shrinks", text, ZSTD_GOAL)
    if settings.wants(ZSTD_RANDOM):
        yield _against_zstd(settings, place, ZSTD_RANDOM, "data that hardly shrinks", mostly_random, None)


def _against_zstd(
    settings: Settings, place: Path, name: str, what: str, filler: Filler, goal: Goal | None
) -> Row:
    line = loopback()
    with sources(place, 1, settings.size, filler, line) as found:
        ours = Contender(place, found, Compression.ZSTD, line)
        blocks = _blocks(found)
        theirs, rates = interleaved(settings.runs, [lambda: _compressing_rate(blocks), ours.rate])
    title = f"two movers, TLS, zstd, {what}: source bytes per second / one thread of zstd-1 in memory"
    details = {"zstd_mib_per_s": theirs, "ours_mib_per_s": rates, **ours.details()}
    return Row(name, title, Unit.RATIO, ratios(rates, theirs), goal, details, CHECKED)


def _blocks(found: Sources) -> list[bytes]:
    """The first blocks of the first disk, in memory."""
    client = nbd.NBD()
    client.connect_unix(str(found.servers[0].socket))
    try:
        starts = range(0, min(SAMPLE, found.size), BLOCK_SIZE)
        return [bytes(client.pread(BLOCK_SIZE, start)) for start in starts]
    finally:
        client.shutdown()


def _compressing_rate(blocks: Sequence[bytes]) -> float:
    """MiB per second of one thread that compresses ``blocks``, one by one, and drops the results."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    started = time.monotonic()
    for block in blocks:
        compressor.compress(block)
    return sum(map(len, blocks)) / MIB / (time.monotonic() - started)


def four_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """Four disks at once in one pair of movers, against one disk that is as large as they are together."""
    wanted = [(FOUR, Compression.ZSTD, FOUR_GOAL), (FOUR_NONE, Compression.NONE, None)]
    wanted = [(name, compression, goal) for name, compression, goal in wanted if settings.wants(name)]
    if not wanted:
        return
    line = loopback()
    with (
        sources(place, 1, settings.size, text, line) as one,
        sources(place, 4, settings.size // 4, text, line) as four,
    ):
        for name, compression, goal in wanted:
            single, several = (Contender(place, found, compression, line) for found in (one, four))
            theirs, rates = interleaved(settings.runs, [single.rate, several.rate])
            title = f"four disks at once / one disk, total throughput; two movers, TLS, {compression}"
            details = {"one_mib_per_s": theirs, "four_mib_per_s": rates, **several.details()}
            details |= {f"one_{part}": seconds for part, seconds in single.details().items()}
            yield Row(name, title, Unit.RATIO, ratios(rates, theirs), goal, details, CHECKED)


def eight_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """How much memory both movers need when they copy eight disks at once."""
    if not settings.wants(*MEMORY.values()):
        return
    line = loopback()
    with sources(place, 8, settings.size // 8, text, line) as found:
        contender = Contender(place, found, Compression.ZSTD, line)
        for _ in range(settings.runs):
            contender.copy()
    for who, name in MEMORY.items():
        peaks = tuple(copied.peaks[who] for copied in contender.copies)
        private = {"private_mib": [copied.private[who] for copied in contender.copies]}
        title = f"largest resident set of the {who} mover with eight disks at once; TLS, zstd"
        yield Row(name, title, Unit.MEBIBYTES, peaks, MEMORY_GOAL, private | contender.details(), CHECKED)


GROUPS: tuple[Group, ...] = (compressing_rows, four_rows, eight_rows)
