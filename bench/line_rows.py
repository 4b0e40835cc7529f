"""The rows of two movers with TLS over a line that is slow or long.

They take long and vary little, so they run three times at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench import nbd_peer
from bench.cable import FAR_ADDRESS, PORT, Cable, cable
from bench.contender import CHECKED, Contender, Sources, sources
from bench.copy_rows import Group
from bench.images import halving, mostly_random
from bench.lines import UNIX, relayed
from bench.result import Goal, Row, Unit, ratios
from bench.settings import Settings
from bench.tools import interleaved
from understudy.model.job import Compression
from understudy.units import MIB

LINK, LINK_PAYLOAD, LINK_NBDCOPY = "link-use", "link-payload", "link-nbdcopy"
DELAY, DELAY_SHORT = "delay-100ms", "delay-50ms"
NAMES = (LINK, LINK_PAYLOAD, LINK_NBDCOPY, DELAY, DELAY_SHORT)
MOST_RUNS = 3
LINK_BITS = 100_000_000
LONG_RATE = 125_000_000
#: Shares of ``Settings.size``: the slow line needs 17 s for half of 384 MiB, the long one 9 s for 1 GiB.
LINK_SHARE, DELAY_SHARE = 3 / 16, 1 / 2
LINK_GOAL, NBDCOPY_GOAL, DELAY_GOAL = (Goal(value, at_least=True) for value in (0.95, 2.0, 0.8))


def link_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """A line of 100 Mbit/s and data that zstd-1 halves: how much of the line is used, and how long nbdcopy takes."""
    if not settings.wants(LINK, LINK_PAYLOAD, LINK_NBDCOPY):
        return
    with (
        cable(LINK_BITS) as wire,
        sources(place, 1, int(settings.size * LINK_SHARE), halving, wire.line) as found,
    ):
        ours = Contender(place, found, Compression.ZSTD, wire.line)
        carried: list[int] = []

        def copy() -> float:
            before = wire.carried()
            seconds = ours.copy().taken.seconds
            carried.append(wire.carried() - before)
            return seconds

        contenders = [copy, lambda: _nbdcopy(place, found, wire)] if settings.wants(LINK_NBDCOPY) else [copy]
        seconds, *peer = interleaved(min(settings.runs, MOST_RUNS), contenders)
    yield from _link_use(ours, carried)
    if peer:
        title = f"{_mbit(LINK_BITS)}: nbdcopy over the line, plain / two movers, TLS, zstd, data that zstd-1 halves"
        details = {"nbdcopy_s": peer[0], **ours.details()}
        yield Row(LINK_NBDCOPY, title, Unit.RATIO, ratios(peer[0], seconds), NBDCOPY_GOAL, details, CHECKED)


def _nbdcopy(place: Path, found: Sources, wire: Cable) -> float:
    target = place / "nbdcopy.qcow2"
    try:
        # The mover's port is free between two copies.
        return nbd_peer.copy_over(wire.line, found.servers[0], target, found.size, FAR_ADDRESS, PORT).seconds
    finally:
        target.unlink(missing_ok=True)


def _link_use(ours: Contender, carried: list[int]) -> Iterator[Row]:
    """What the line carried, and what of it were frames of the movers; both by the time of sending.

    The line counts the headers of packets (4 %), as its rate limit does, and TLS records (0.2 %): frames alone cannot
    reach more than 0.955. So the goal is for what the line carried.
    """
    seconds = [copied.sending for copied in ours.copies]
    payload = [float(copied.progress.wire) for copied in ours.copies]
    details = {"carried_mib": [count / MIB for count in carried], **ours.details()}
    for name, what, counts, goal in (
        (LINK, "bytes on the line, packet headers included", carried, LINK_GOAL),
        (LINK_PAYLOAD, "bytes of the movers' frames", payload, None),
    ):
        use = tuple(count / taken / (LINK_BITS / 8) for count, taken in zip(counts, seconds, strict=True))
        title = f"{_mbit(LINK_BITS)}: {what} / time of sending / rate of the line; two movers, TLS, zstd"
        yield Row(name, title, Unit.RATIO, use, goal, details, CHECKED)


def delay_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """A line of 1 Gbit/s with a delay against the same line without one; both go through the same relay."""
    wanted = [(name, each_way, goal) for name, each_way, goal in ((DELAY, 50, DELAY_GOAL), (DELAY_SHORT, 25, None))
              if settings.wants(name)]  # fmt: skip
    if not wanted:
        return
    with ExitStack() as stack:
        lines = [stack.enter_context(relayed(each_way, LONG_RATE)) for each_way in (0, *(item[1] for item in wanted))]
        found = stack.enter_context(sources(place, 1, int(settings.size * DELAY_SHARE), mostly_random, UNIX))
        near, *others = [Contender(place, found, Compression.NONE, line) for line in lines]
        theirs, *rates = interleaved(min(settings.runs, MOST_RUNS), [one.rate for one in (near, *others)])
    for (name, each_way, goal), ours, delayed in zip(wanted, others, rates, strict=True):
        title = f"1 Gbit/s with {each_way} ms each way / without delay, throughput; two movers, TLS, none"
        details = {"near_mib_per_s": theirs, "ours_mib_per_s": delayed, **ours.details()}
        yield Row(name, title, Unit.RATIO, ratios(delayed, theirs), goal, details, CHECKED)


def _mbit(bits_per_s: int) -> str:
    return f"{bits_per_s // 1_000_000} Mbit/s"


GROUPS: tuple[Group, ...] = (link_rows, delay_rows)
