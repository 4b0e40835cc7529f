"""What tests of content share: runs whose instant is known, and what libvirt says of a VM."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt_qemu

from tests.system.installation import Installation, assert_same, frozen_copy
from understudy.lab.agent import run_in_guest, wait_agent
from understudy.lab.vm import LabVm

MIB = 1 << 20
QUIET = ("--guest-processing", "off")  # for jobs on guests that are paused or writing, where no agent is wanted


@dataclass(frozen=True)
class Instant:
    """A run of a job with one VM, and what the VM's disks held at its snapshot."""

    session: Any
    copies: dict[str, Path]

    @property
    def task(self) -> Any:
        """Its only task."""
        (task,) = self.session["tasks"]
        return task

    @property
    def point(self) -> str:
        """The restore point that it made."""
        return str(self.task["restore_point"])

    def disk(self, name: str) -> Any:
        """What the run says of a disk."""
        return next(disk for disk in self.task["disks"] if disk["name"] == name)

    def how(self) -> dict[str, tuple[str, str]]:
        """Mode and reason per disk."""
        return {disk["name"]: (disk["mode"], disk["reason"]) for disk in self.task["disks"]}


INCREMENTAL = ("incremental", "")


def replicate_instant(installation: Installation, vm: LabVm, job: str, *options: str, meanwhile: str = "") -> Instant:
    """Run a job on a guest that stands still at the snapshot only, and goes on writing while its disks are read.

    :param meanwhile: a script that runs in the guest between the snapshot and the first read.
    """
    with vm.domain() as domain:
        domain.suspend()
        copies = frozen_copy(vm, installation.place)
        with installation.stalled(job, "snapshot.after", *options) as run:
            domain.resume()
            if meanwhile:
                vm.run(meanwhile)
    assert run.ended.status == 0, run.ended
    return Instant(run.ended.json, copies)


def replicate_paused(installation: Installation, vm: LabVm, job: str, *options: str) -> Instant:
    """Run a job on a guest that stands still all the time."""
    with vm.domain() as domain:
        domain.suspend()
        copies = frozen_copy(vm, installation.place)
        session = installation.replicate(job, *options)
        domain.resume()
    return Instant(session, copies)


def replicate_off(installation: Installation, vm: LabVm, job: str, *options: str) -> Instant:
    """Run a job on a VM that is powered off."""
    copies = frozen_copy(vm, installation.place)
    return Instant(installation.replicate(job, *options), copies)


def assert_points_are(installation: Installation, replica: str, *instants: Instant) -> None:
    """The replica has exactly these points, each with the disks, sizes and bytes of its instant.

    The newest, which the next run starts from, is proved by its digests too.
    """
    points = installation.points(replica)
    assert [point["id"] for point in points] == [instant.point for instant in instants]
    for point, instant in zip(points, instants, strict=True):
        assert_point_is(point, instant.copies)
    installation.ok("replica", "verify", replica)


def assert_point_is(point: dict[str, Any], copies: dict[str, Path]) -> None:
    """A point has the disks, sizes and bytes of these copies."""
    assert {disk["name"]: disk["size"] for disk in point["disks"]} == {
        name: copy.stat().st_size for name, copy in copies.items()
    }
    for disk in point["disks"]:
        assert virtual_size(disk["image"]) == disk["size"]
        assert_same(disk["image"], copies[disk["name"]])


def virtual_size(image: str) -> int:
    """The size that the guest sees."""
    said = subprocess.run(["qemu-img", "info", "-U", "--output=json", image], capture_output=True, check=True).stdout
    return int(json.loads(said)["virtual-size"])


def replica_directory(installation: Installation, replica: str) -> Path:
    """Where a replica lies, found by what the command line says of its points."""
    return Path(installation.points(replica)[0]["disks"][0]["image"]).parent.parent


def published_files(directory: Path) -> dict[str, str]:
    """Hash of every file that restore points consist of, by path in the replica's directory."""
    files = [path for part in ("layers", "digests", "points") for path in (directory / part).iterdir()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def checkpoints(vm: LabVm) -> list[str]:
    """Names of the VM's checkpoints, sorted."""
    with vm.domain() as domain:
        return sorted(item.getName() for item in domain.listAllCheckpoints())


def our_checkpoints(vm: LabVm) -> list[str]:
    """Those that carry our mark."""
    return [name for name in checkpoints(vm) if name.startswith("understudy-")]


def disk_paths(vm: LabVm) -> dict[str, str]:
    """Per disk, the file that the running VM writes to."""
    with vm.domain() as domain:
        root = ET.fromstring(domain.XMLDesc(0))
    found = {}
    for disk in root.iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        assert source is not None
        assert target is not None
        found[target.get("dev", "")] = source.get("file", "")
    return found


def freeze_status(vm: LabVm) -> str:
    """What the guest agent says: ``frozen`` or ``thawed``."""
    with vm.domain() as domain:
        answer = libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-fsfreeze-status"}', 5, 0)
    return str(json.loads(answer)["return"])


def wait_until(true: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait for something; how long it took."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - started


def run_in_replica(installation: Installation, replica: str, script: str) -> str:
    """Wait for the agent of a replica that runs on beta, and run a script in it."""
    with installation.lab.beta.connection() as beta:
        wait_agent(beta, replica)
        return run_in_guest(beta, replica, script)
