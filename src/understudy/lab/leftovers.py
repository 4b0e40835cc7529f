"""What did a lab start, and what is left of a lab whose owner died?

A lab directory is locked (flock) for as long as its owner lives, and its state file names the processes that keep its
hosts. A lab whose lock is free is dead: its processes, if any live, are ended, and its directory is removed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from understudy.lab.errors import LabError, LabNotClean
from understudy.lab.processes import ProcessIdentity

log = logging.getLogger(__name__)

PREFIX = "understudy-lab-"
_STATE = "lab.json"


def take_lock(directory: Path) -> int:
    """Become the owner of a lab directory until the returned descriptor is closed; LabError when it has one."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise LabError(str(directory), "another lab runs in this directory", "choose another directory") from exc
    return descriptor


def record(directory: Path, holders: Sequence[ProcessIdentity]) -> None:
    """Write down which processes keep the hosts of this lab, so that a later lab can end them."""
    new = directory / f"{_STATE}.new"
    new.write_text(json.dumps({"holders": [asdict(holder) for holder in holders]}))
    new.rename(directory / _STATE)


def sweep_dead_labs(parent: Path) -> None:
    """End and remove every dead lab directly below `parent`; logs a warning for one that cannot be removed."""
    for directory in sorted(parent.glob(f"{PREFIX}*")):
        if not (directory / _STATE).exists():
            continue
        try:
            lock = take_lock(directory)
        except LabError:
            log.debug("%s: this lab is alive", directory)
            continue
        try:
            end_recorded(directory)
            remove_files(directory, (), whole=True)
            log.info("%s: removed, its owner had died", directory)
        except LabNotClean as exc:
            log.warning("a dead lab stays: %s", exc)
        finally:
            os.close(lock)


def end_recorded(directory: Path) -> None:
    """Kill the recorded processes that still run; each takes its whole host with it."""
    state = directory / _STATE
    if not state.exists():
        return
    for fields in json.loads(state.read_text())["holders"]:
        holder = ProcessIdentity(**fields)
        holder.signal(signal.SIGKILL)
        if not holder.wait_end(timeout_s=15):
            raise LabNotClean(str(directory), f"process {holder.pid} of the dead lab does not end")


def remove_files(directory: Path, parts: Sequence[str], *, whole: bool = False) -> None:
    """Remove the named parts of a lab directory and our own files in it, or the whole directory.

    Raises LabNotClean when something is mounted below (removing files would reach into it) or a file stays.
    """
    mounts = [mount for mount in _mount_points() if mount.is_relative_to(directory)]
    if mounts:
        raise LabNotClean(str(directory), f"still mounted: {', '.join(map(str, mounts))}", "unmount it")
    try:
        for name in parts:
            if (directory / name).exists():
                shutil.rmtree(directory / name)
        (directory / _STATE).unlink(missing_ok=True)
        if whole:
            shutil.rmtree(directory)
    except OSError as exc:
        raise LabNotClean(str(directory), f"{exc.filename}: {exc.strerror}") from exc


def _mount_points() -> Iterator[Path]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        # The kernel writes space, tab, newline and backslash as octal escapes.
        yield Path(line.split()[1].encode("latin-1", "backslashreplace").decode("unicode_escape"))
