"""``python -m bench``: run the rows, print a table, write JSON."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import copy_rows, exclusion_rows, job_rows, line_rows, planning, surveys, vsphere_rows, wire_rows
from bench.machine import machine, versions
from bench.place import memory_place
from bench.result import Row, table
from bench.settings import Settings
from bench.tools import BenchError
from understudy.errors import UnderstudyError
from understudy.units import parse_size

_MODULES = (copy_rows, planning, surveys, wire_rows, line_rows, exclusion_rows, job_rows, vsphere_rows)
GROUPS = tuple(group for module in _MODULES for group in module.GROUPS)
NAMES = tuple(name for module in _MODULES for name in module.NAMES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a row could not be measured. A missed goal is a result, not a failure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = [wanted for wanted in options.only if not fnmatch.filter(NAMES, wanted)]
    if unknown or options.runs < 1:
        parser.error(f"no row is named {' or '.join(unknown)}" if unknown else "--runs must be 1 or more")
    settings = Settings(options.runs, tuple(options.only), options.size, options.vm_disk, options.vm_data,
                        options.huge_disk, options.huge_data)  # fmt: skip
    started = datetime.datetime.now(datetime.UTC)
    facts = machine()
    rows, problems = _measure(settings)
    print(table(rows))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if options.json:
        document = {
            "started_at": started.isoformat(timespec="seconds"),
            "seconds": (datetime.datetime.now(datetime.UTC) - started).total_seconds(),
            "settings": settings.facts(),
            "machine": facts,
            "versions": versions(),
            "rows": [row.shape() for row in rows],
            "problems": problems,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if problems or not rows else 0


def _measure(settings: Settings) -> tuple[list[Row], list[str]]:
    """All wanted rows; what hinders one group leaves the others alone."""
    rows: list[Row] = []
    problems: list[str] = []
    for group in GROUPS:
        try:
            with memory_place(_needed(settings)) as place:
                for row in group(settings, place):
                    print(f"{row.name}: {row.median:.2f} {row.unit.value}", file=sys.stderr, flush=True)
                    if settings.wants(row.name):
                        rows.append(row)
        except (BenchError, UnderstudyError, OSError) as exc:
            problems.append(f"{group.__name__}: {_shortened(str(exc))}")
    return rows, problems


def _shortened(why: str) -> str:
    """What other programs said can be long; its beginning and its end tell most."""
    return why if len(why) <= 600 else f"{why[:200]} ... {why[-400:]}"


def _needed(settings: Settings) -> int:
    """Bytes in memory: two sources, and as much again twice; for VMs two sources, a backup, its restore, a replica."""
    wanted = [settings.size * 4, settings.huge_data * 3]
    if settings.wants(*job_rows.NAMES, *exclusion_rows.NAMES):
        wanted.append(settings.vm_data * 6)
    return max(wanted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=Settings.runs, help="runs of each contender (%(default)s)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"only these rows, * for any characters: {', '.join(NAMES)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    for name, what in (
        ("size", "data of the copying rows"), ("vm-disk", "data disk of the VM"), ("vm-data", "data on it"),
        ("huge-disk", "disk of the huge rows"), ("huge-data", "data on it"),
    ):  # fmt: skip
        default = getattr(Settings, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=_size, default=default, metavar="SIZE", help=what)
    return parser


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


if __name__ == "__main__":
    sys.exit(main())
