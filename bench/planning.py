"""Planning: what an incremental of a huge disk reads, decided from a real dirty map; a process of its own.

``python -m bench.planning SOCKET DIRTY_CONTEXT SIZE`` prints JSON: seconds, largest resident set in MiB, blocks read.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bench.images import add_bitmap
from bench.memory import sizes
from bench.nbd_peer import served
from bench.result import Goal, Row, Unit
from bench.settings import Settings
from bench.tools import BenchError, run
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource
from understudy.mover.base import NothingKnown
from understudy.mover.meter import Counters
from understudy.mover.plan import Plan, PlanSpec, ReadBlock
from understudy.mover.reader import Source
from understudy.units import KIB, MIB, format_size

SCATTERED, MEMORY = "plan-scattered", "memory-plan-scattered"
NAMES = (SCATTERED, MEMORY)
BITMAP = "b0"
PIECE = 64 * KIB
BLOCK = MIB


@dataclass(frozen=True)
class _Planned:
    seconds: float
    peak_mib: float
    blocks: int


def scattered_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """Planning an incremental of a huge disk with many small changes all over it."""
    if not settings.wants(*NAMES):
        return
    image = place / "scattered.qcow2"
    run("qemu-img", "create", "-f", "qcow2", image, str(settings.huge_disk))
    add_bitmap(image, BITMAP)
    blocks = _scatter(image, settings.huge_disk, settings.huge_changes)
    with served(image, "-r", "-B", BITMAP) as server:
        found = [_plan(server.socket, settings.huge_disk, blocks) for _ in range(settings.runs)]
    image.unlink()
    shown = f"{settings.huge_changes:,} changes scattered over {format_size(settings.huge_disk)}"
    details = {"blocks": [float(planned.blocks) for planned in found]}
    seconds = tuple(planned.seconds for planned in found)
    yield Row(SCATTERED, f"planning an incremental: {shown}", Unit.SECONDS, seconds, Goal(2), details,
              "the number of blocks to read")  # fmt: skip
    yield Row(MEMORY, f"largest resident set in {SCATTERED}", Unit.MEBIBYTES,
              tuple(planned.peak_mib for planned in found), Goal(200))  # fmt: skip


def _scatter(image: Path, size: int, changes: int) -> int:
    """Change that many pieces at random; returns the number of blocks that have changes."""
    places = sorted(Random(7).sample(range(size // PIECE), changes))
    commands = image.with_suffix(".commands")
    # Zeros make the map dirty as data does, without filling memory.
    commands.write_text("".join(f"write -q -z {place * PIECE} {PIECE}\n" for place in places))
    try:
        run("sh", "-c", 'exec qemu-io -t unsafe -f qcow2 "$0" < "$1"', image, commands)
    finally:
        commands.unlink()
    return len({place * PIECE // BLOCK for place in places})


def _plan(socket: Path, size: int, blocks: int) -> _Planned:
    said = run(sys.executable, "-m", "bench.planning", socket, f"qemu:dirty-bitmap:{BITMAP}", str(size))
    planned = _Planned(**json.loads(said))
    if planned.blocks != blocks:
        raise BenchError(f"{planned.blocks} blocks are planned, {blocks} have changed")
    return planned


def _measure(socket: str, dirty_context: str, size: int) -> _Planned:
    started = time.monotonic()
    source = Source(NbdSource(socket, "", dirty_context), size, tracked=True)
    spec = PlanSpec(size, BLOCK, TransferMode.INCREMENTAL, write_zeros=True, dirty_context=dirty_context)
    plan, blocks = Plan(spec, source, NothingKnown(), Counters()), 0
    while (item := plan.take()) is not None:
        if isinstance(item, ReadBlock):
            blocks += 1
    seconds = time.monotonic() - started
    source.close()
    return _Planned(seconds, sizes("self")["VmHWM"], blocks)


GROUPS = (scattered_rows,)


def _main() -> None:
    socket, dirty_context, size = sys.argv[1:]
    print(json.dumps(_measure(socket, dirty_context, int(size)).__dict__))


if __name__ == "__main__":
    _main()
