"""Where can a run be interrupted? Before and after each step, and at every fault point, found in the sources."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import understudy
from understudy.model.session import Step

SOURCES = Path(next(iter(understudy.__path__)))
#: Modules of acts that are no part of a run, and have their tests elsewhere.
NO_PART_OF_A_RUN = (
    "replication/failover.py", "replication/conversion.py", "mover/verify.py", "mover/conversion.py",
    "storage/qcow2/salvage.py",
)
#: Modules of a kind of target whose restore points are snapshots of the replica VM.
OF_SNAPSHOTS = (
    "replication/snapshot_points.py", "mover/leaves.py", "storage/snapshots/draft.py", "storage/snapshots/store.py",
)
# Between them lie the freeze, the snapshot with its baseline, the copy, and the end of the snapshot.
_SHARP_BORDERS = ("snapshot.before", "read.before", "commit.before", "commit.after")


def steps() -> list[str]:
    """Before and after every step that a run goes through."""
    told = {name for path in SOURCES.rglob("*.py") for name in re.findall(r"\.step\(Step\.(\w+)\)", path.read_text())}
    return [f"{step}.{side}" for step in Step if step.name in told for side in ("before", "after")]


def borders() -> list[str]:
    """Before the first step, between any two, and after the last.

    The end of a step and the beginning of the next are one instant for everybody but the controller, which alone is
    between them.
    """
    return [place for place in steps() if place.endswith(".before")] + steps()[-1:]


def rows(places: Sequence[str], thorough: Sequence[str]) -> list[object]:
    """Where somebody dies: at ``places`` whenever there are tests, and at ``thorough`` in ``make thorough``.

    The latter are those where the matrix of another victim or platform tries nearly the same every time. On libvirt the
    controller dies everywhere. On vSphere those are left out that libvirt has: the steps, and proxies and stores that
    know no platform; and where the source is a vCenter, what is tried where the target is one.
    """
    return [*places, *(pytest.param(place, marks=pytest.mark.thorough) for place in thorough)]


def rows_of_borders(places: Sequence[str] = ()) -> list[object]:
    """Borders of steps, and ``places``; at the borders where nothing of the run changes, only in ``make thorough``."""
    return rows([*_SHARP_BORDERS, *places], [border for border in borders() if border not in _SHARP_BORDERS])


def fault_points(under: str = "", *, without: Sequence[str] = OF_SNAPSHOTS) -> list[str]:
    """Every fault point of the sources that has a fixed name, but for those outside a run.

    :param under: a directory of the sources.
    :param without: files and directories whose fault points are left out, unless others have them too.
    """
    found: dict[str, None] = {}
    for path in sorted((SOURCES / under).rglob("*.py")):
        name = str(path.relative_to(SOURCES))
        if name not in NO_PART_OF_A_RUN and not name.startswith(tuple(without)):
            found |= dict.fromkeys(re.findall(r'fault_point\("([^"]+)"\)', path.read_text()))
    return list(found)
