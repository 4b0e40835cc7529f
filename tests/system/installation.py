"""An Understudy installation under test: a home of its own, driven through the real command line only."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from tests.system.commands import Commands
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm


class Installation(Commands):
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
