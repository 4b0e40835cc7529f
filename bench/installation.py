"""Installation: Understudy as an operator runs it, whole commands in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.memory import MemoryProbe, movers_below
from bench.tools import BenchError
from understudy.lab.lab import Lab

SUFFIX = "_replica"


@dataclass(frozen=True)
class JobRun:
    """One ``job run``.

    :ivar seconds: from the start of the process to its end.
    :ivar task: what it reported of the VM.
    :ivar peak: largest resident set of its movers, in MiB; ``private`` is the part that is no file and not shared.
    """

    seconds: float
    task: dict[str, Any]
    peak: float
    private: float

    @property
    def modes(self) -> list[str]:
        """How each disk was copied."""
        return [disk["mode"] for disk in self.task["disks"]]


class Installation:
    """A home with both lab hosts and a datastore on the second one.

    Everything lies in ``place``, in memory, the database too: no row waits for a disk.
    """

    def __init__(self, lab: Lab, place: Path) -> None:
        self._home = place / "home"
        store = place / "store"
        store.mkdir()
        for host in lab.hosts:
            self.command("host", "add", host.name, host.uri, "--scratch-dir", str(place / f"scratch-{host.name}"))
        self.command("datastore", "add", "ds", "--host", lab.beta.name, "--path", str(store))

    def command(self, *arguments: str) -> Any:
        """Run a command that must succeed; its JSON."""
        words = self._words(arguments)
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
        return _answer(words, done.returncode, done.stdout, done.stderr)

    def make_job(self, name: str, vm: str, *options: str) -> None:
        """Create a job from the first host to the second."""
        self.command("job", "create", name, "--source", "alpha", "--target", "beta", "--datastore", "ds", "--vm", vm,
                     "--guest-processing", "require", *options)  # fmt: skip

    def run_job(self, name: str) -> JobRun:
        """Run a job; the clock runs from before its process starts until it ended."""
        words = self._words(("job", "run", name))
        started = time.monotonic()
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with MemoryProbe(lambda: movers_below(process.pid)) as probe:
            out, err = process.communicate(timeout=900)
            seconds = time.monotonic() - started
        session = _answer(words, process.returncode, out, err)
        (task,) = session["tasks"]
        if task["warnings"]:
            raise BenchError(f"job {name} ended with warnings: {'; '.join(task['warnings'])}")
        return JobRun(seconds, task, probe.peak, probe.private)

    def newest_image(self, vm: str, disk: str) -> Path:
        """The image that shows a VM's disk at its newest restore point."""
        points = self.command("replica", "points", vm + SUFFIX)
        return next(Path(found["image"]) for found in points[-1]["disks"] if found["name"] == disk)

    def remove_replica(self, vm: str) -> None:
        """Delete a VM's replica, if there is one."""
        if any(replica["name"] == vm + SUFFIX for replica in self.command("replica", "list")):
            self.command("replica", "remove", vm + SUFFIX, "--delete-files")

    def _words(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "understudy", "--home", str(self._home), "--json", *arguments]


def _answer(words: list[str], status: int, out: str, err: str) -> Any:
    if status != 0:
        raise BenchError(f"{' '.join(words)}: status {status}: {err.strip() or out.strip()}")
    return json.loads(out)
