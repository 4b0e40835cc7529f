"""An Understudy installation under test: a home of its own, driven through the real command line only.

Commands run in forks of a process that has the program imported, unless the installation is told to start each anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.forked import ForkedCommand, forks
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm

RUN_TIMEOUT_S = 240


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


@dataclass
class StalledRun:
    """A ``job run`` that stands at a fault point; ``answer`` is there when the block is left."""

    process: ForkedCommand | subprocess.Popen[str]
    answer: Answer | None = None

    @property
    def ended(self) -> Answer:
        """What it said."""
        assert self.answer is not None
        return self.answer


class Installation:
    """Hosts ``alpha`` and ``beta``, datastore ``ds`` on beta, and whatever jobs a test makes."""

    def __init__(self, lab: Lab, place: Path, *, anew: bool = False) -> None:
        """:param anew: start an interpreter for each command, as a shell does."""
        self.lab = lab
        self.anew = anew
        self.place = place
        self.home = place / "home"
        self.store = place / "store"
        self.scratch = place / "scratch"
        place.chmod(0o755)
        self.store.mkdir(mode=0o755, exist_ok=True)
        for host in lab.hosts:
            self.ok("host", "add", host.name, host.uri, "--scratch-dir", str(self.scratch))
        self.ok("datastore", "add", "ds", "--host", "beta", "--path", str(self.store))

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """What starts a program where the commands run, if that is not here."""
        return ()

    def command(self, *arguments: str) -> list[str]:
        """The argument vector of a command."""
        return [*self.elsewhere, *self._plain_command(*arguments)]

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> Answer:
        """Run a command to its end."""
        process = self._start(arguments, env or {})
        try:
            out, err = process.communicate(timeout=RUN_TIMEOUT_S)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Answer(process.wait(), out, err)

    def _start(self, arguments: Sequence[str], env: Mapping[str, str]) -> ForkedCommand | subprocess.Popen[str]:
        environment = {**os.environ, **env}
        if not self.anew:
            return forks(self.elsewhere).start(self._plain_command(*arguments), environment)
        return subprocess.Popen(
            self.command(*arguments), env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def _plain_command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "understudy", "--home", str(self.home), *arguments]

    def ok(self, *arguments: str) -> Answer:
        """Run a command that must succeed."""
        answer = self.run(*arguments)
        assert answer.status == 0, (arguments, answer)
        return answer

    def json(self, *arguments: str) -> Any:
        """Run a command that must succeed, with ``--json``."""
        return self.ok("--json", *arguments).json

    def job(self, name: str, *vms: str, options: tuple[str, ...] = ()) -> None:
        """Create a job from alpha to beta."""
        wanted = [word for vm in vms for word in ("--vm", vm)]
        self.ok("job", "create", name, "--source", "alpha", "--target", "beta", "--datastore", "ds", *wanted, *options)

    def replicate(self, job: str, *options: str) -> Any:
        """Run a job that must succeed; its session as JSON."""
        answer = self.run("--json", "job", "run", job, *options)
        assert answer.status == 0, answer
        return answer.json

    def points(self, replica: str) -> list[dict[str, Any]]:
        """Restore points of a replica, oldest first."""
        found = self.json("replica", "points", replica)
        assert isinstance(found, list)
        return found

    @contextmanager
    def stalled(self, job: str, point: str, *options: str, verb: str = "run") -> Iterator[StalledRun]:
        """Run a job, or estimate it, and stop at a fault point; inside the block it stands there, then it goes on.

        The block may kill or interrupt it. It is waited for at the end.
        """
        release = self.place / f"release-{time.monotonic_ns()}"
        fault = {"UNDERSTUDY_FAULT": f"{point}=stall", "UNDERSTUDY_FAULT_RELEASE": str(release)}
        process = self._start(("--json", "job", verb, job, *options), fault)
        run = StalledRun(process)
        try:
            deadline = time.monotonic() + 60
            while not release.with_name(release.name + ".reached").exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, f"{point} was not reached"
                time.sleep(0.01)
            yield run
            release.touch()
            out, err = process.communicate(timeout=RUN_TIMEOUT_S)
            run.answer = Answer(process.wait(), out, err)
        finally:
            release.touch()
            if run.answer is None:
                process.kill()
                process.communicate()


def frozen_copy(vm: LabVm, target: Path) -> dict[str, Path]:
    """An independent copy of each disk of a paused guest, as it is at this instant; per disk name.

    Pausing makes QEMU drain and flush its images, so that another process may read them.
    """
    copies = {}
    for disk in vm.disks:
        copy = target / f"{vm.name}-{disk.target}-{time.monotonic_ns()}.raw"
        subprocess.run(
            ["qemu-img", "convert", "-U", "-f", disk.format, "-O", "raw", str(disk.path), str(copy)], check=True
        )
        copies[disk.target] = copy
    return copies


def assert_same(image: str | Path, copy: Path, image_format: str = "qcow2") -> None:
    """The guest sees the same bytes in a restore point's image and in a raw copy."""
    done = subprocess.run(
        ["qemu-img", "compare", "-f", image_format, "-F", "raw", str(image), str(copy)],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
