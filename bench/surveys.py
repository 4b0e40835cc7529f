"""The rows of surveys: what can be left out of a volume with many files, found by the process that a session starts.

``python -m bench.surveys SOCKET SIZE MASK...`` does for one survey what a mover does, and prints JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.nbd_peer import served
from bench.result import Goal, Row, Unit
from bench.settings import Settings
from bench.tools import BenchError, run
from bench.volumes import EXT4, NTFS, XFS, Kind, make_volume
from understudy.context import Context
from understudy.model.exclusion import Kind as Why
from understudy.mover.api import NbdSource, SurveyDisks, SurveyedDisk
from understudy.mover.survey_process import survey_disks
from understudy.units import KIB, MIB

#: The second one makes every directory be searched.
MASKS = ("cache/**", "**/*.tmp", "home/*/.cache/**", "var/log/**/*.gz")
LONGEST, LONGEST_OF_MANY = 20 * KIB, 4 * KIB
MANY = "masks-million"
SURVEYS = {f"survey-{kind.name}": kind for kind in (EXT4, XFS, NTFS)}
NAMES = tuple(name for row in (*SURVEYS, MANY) for name in (row, f"memory-{row}"))
CHECKED = "that swap, masks and free blocks were found in every run, the same bytes, and nothing was refused"


@dataclass(frozen=True)
class _Surveyed:
    """What one survey took, and the bytes that it found for each reason; whether something was refused, in words."""

    seconds: float
    cpu_s: float
    peak_mib: float
    by_kind: dict[str, int]
    notes: list[str]


def survey_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """A survey of each kind of file system, with everything wished for."""
    for name, kind in SURVEYS.items():
        if settings.wants(name, f"memory-{name}"):
            found = _surveys(settings, place, kind, settings.volume_files, LONGEST, holes=True)
            title = f"swap, masks and free blocks of {kind.name} with {settings.volume_files:,} files"
            yield from _rows(name, title, found, Goal(2), Goal(128))


def many_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """A survey of very many files."""
    if settings.wants(MANY, f"memory-{MANY}"):
        found = _surveys(settings, place, EXT4, settings.many_files, LONGEST_OF_MANY, holes=False)
        title = f"swap, masks and free blocks of ext4 with {settings.many_files:,} files, half of them masked"
        yield from _rows(MANY, title, found, Goal(60), None)


def _surveys(settings: Settings, place: Path, kind: Kind, files: int, longest: int, *, holes: bool) -> list[_Surveyed]:
    image = place / f"{kind.name}.qcow2"
    size = make_volume(image, kind, files, longest, holes=holes)
    try:
        with served(image, "-r") as server:
            found = [_survey(server.socket, size, kind.masks(*MASKS)) for _ in range(settings.runs)]
    finally:
        image.unlink()
    for surveyed in found:
        if surveyed.notes or set(surveyed.by_kind) != set(Why) or surveyed.by_kind != found[0].by_kind:
            raise BenchError(f"the survey of {kind.name} found {surveyed.by_kind}; {' '.join(surveyed.notes)}")
    return found


def _rows(name: str, title: str, found: Sequence[_Surveyed], time_goal: Goal, memory: Goal | None) -> Iterator[Row]:
    details = {"cpu_s": [surveyed.cpu_s for surveyed in found]}
    details |= {f"{why}_mib": [surveyed.by_kind[why] / MIB for surveyed in found] for why in Why}
    seconds = tuple(surveyed.seconds for surveyed in found)
    yield Row(name, title, Unit.SECONDS, seconds, time_goal, details, CHECKED)
    peaks = tuple(surveyed.peak_mib for surveyed in found)
    yield Row(f"memory-{name}", f"largest resident set of the process in {name}", Unit.MEBIBYTES, peaks, memory)


def _survey(socket: Path, size: int, masks: Sequence[str]) -> _Surveyed:
    return _Surveyed(**json.loads(run(sys.executable, "-m", "bench.surveys", socket, str(size), *masks)))


def _measure(socket: str, size: int, masks: tuple[str, ...]) -> _Surveyed:
    """One survey. The process that makes it is the only child of this one, so the kernel's sums are its own."""
    disk = SurveyedDisk("vda", NbdSource(socket, "", ""), size)
    request = SurveyDisks((disk,), swap=True, masks=masks, free=True, quiesced=True, former=())
    started = time.monotonic()
    (found,) = survey_disks(Context(), request, None)
    seconds = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return _Surveyed(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / KIB, dict(found.exclusion.by_kind),
                     list(found.notes))  # fmt: skip


GROUPS = (survey_rows, many_rows)


def _main() -> None:
    socket, size, *masks = sys.argv[1:]
    print(json.dumps(_measure(socket, int(size), tuple(masks)).__dict__))


if __name__ == "__main__":
    _main()
