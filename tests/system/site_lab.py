"""Two sites under test: what a run over the link between them must have brought, and what nobody may find afterwards.

One running VM serves all cases of a file. A run begins while the guest stands still, with a copy of its disks, and the
guest goes on writing while the disks travel; at the end the new point is compared with that copy, and every older one
with its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.system.aftermath import left_on_domain, unreferenced_files
from tests.system.installation import assert_same, frozen_copy
from understudy.controller import jobs, reports
from understudy.controller.database import Database, open_database
from understudy.lab.disks import DataDisk
from understudy.lab.host_process import HostProcess
from understudy.lab.hosts import LabHost
from understudy.lab.lab import Lab
from understudy.lab.site_pair import SitePair
from understudy.lab.vm import LabVm
from understudy.model.guest import GuestPolicy
from understudy.model.job import DEFAULT_CONNECTIONS, DEFAULT_PATIENCE_S, Job
from understudy.model.session import DiskReport, SessionReport, SessionState, Step, StepState, TaskReport
from understudy.mover.receive import CHECKPOINT_S
from understudy.units import MIB

MBIT = 1_000_000
#: The line of most cases, in bits and in bytes per second.
LINE_BITS = 40 * MBIT
LINE = LINE_BITS // 8
#: Frames, and what TLS would add if it were counted: on top of data that cannot be compressed.
FRAMES = 1.002

_GOOD = (SessionState.SUCCESS, SessionState.WARNING)
_PROGRAMS = ("understudy.guests", "qemu-nbd", "qemu-img", "job run", "understudy.mover")


def in_flight(rate: int = LINE) -> int:
    """How many bytes a loss may cost at most: what came since the last acknowledgement, and what was on the way.

    The target acknowledges twice a second; making that durable takes a while on a busy machine, and TCP's buffers hold
    a few tenths of a second of what the line carries. Each connection may be in the middle of a block.
    """
    return int(rate * (CHECKPOINT_S + 1.5)) + DEFAULT_CONNECTIONS * MIB


@dataclass
class Run:
    """A run of a job under way on beta.

    :ivar copies: what the VM's disks held at its snapshot, by disk.
    """

    sites: SiteLab
    vm: LabVm
    replica: str
    session: int
    process: HostProcess
    copies: dict[str, Path]

    @property
    def report(self) -> SessionReport:
        """What ``session show`` would show."""
        return reports.session_report(self.sites.database, self.session)

    @property
    def task(self) -> TaskReport:
        """The task of the VM."""
        return next(task for task in self.report.tasks if task.vm == self.vm.name)

    def disk(self, name: str = "vdb") -> DiskReport:
        """What is said of a disk."""
        return disk_of(self.task, name)

    def await_sent(self, size: int, name: str = "vdb") -> None:
        """Wait until so many bytes of a disk went on the wire."""
        self.until(lambda: any(disk.name == name and disk.wire_bytes >= size for disk in self.task.disks),
                   f"{size} bytes of {name} on the wire")  # fmt: skip

    def await_ended(self, name: str) -> None:
        """Wait until a disk is durable on the target, while the session goes on."""
        self.until(lambda: any(disk.name == name and disk.processed_bytes == disk.size for disk in self.task.disks),
                   f"the end of {name}")  # fmt: skip

    def until(self, true: Callable[[], bool], what: str, timeout_s: float = 90) -> float:
        """Wait for something while the session runs; how long it took."""
        started = time.monotonic()
        while not true():
            assert not self.report.state.ended, (what, self.report)
            assert time.monotonic() - started < timeout_s, (f"not within {timeout_s} s: {what}", self.report)
            time.sleep(0.1)
        return time.monotonic() - started

    def end(self, timeout_s: float = 180) -> TaskReport:
        """Wait until the command has ended; the task."""
        self.process.wait(timeout_s)
        assert self.report.state.ended, self.report
        return self.task

    def succeed(self, timeout_s: float = 180) -> TaskReport:
        """Wait for the end, which must be good, and check everything that the run left."""
        task = self.end(timeout_s)
        assert task.state in _GOOD, (task, self.process.log.read_text())
        self.sites.check_point(self, task)
        return task

    def fail(self, timeout_s: float = 180) -> str:
        """Wait for the end, which must be a failure; its error."""
        task = self.end(timeout_s)
        assert task.state is SessionState.FAILED, (task, self.process.log.read_text())
        assert task.error is not None
        return task.error


class SiteLab:
    """A linked lab with enrolled proxies ``near`` (alpha) and ``far`` (beta), and datastore ``vault`` on beta."""

    def __init__(self, lab: Lab, place: Path) -> None:
        self.lab = lab
        self.place = place
        self.store = place / "vault"
        self.scratch = lab.directory / "scratch"
        self.pair = SitePair(lab, place / "sites")
        for directory in (place, self.store, place / "sites"):
            directory.mkdir(mode=0o755, exist_ok=True)
        for host in lab.hosts:
            self.pair.run("host", "add", host.name, host.uri, "--scratch-dir", str(self.scratch))
        self.pair.run("datastore", "add", "vault", "--host", "beta", "--path", str(self.store))
        self.database: Database = open_database(self.pair.home)
        self._known: dict[tuple[str, str], dict[str, Path]] = {}

    def close(self) -> None:
        """End the proxies."""
        self.database.close()
        self.pair.close()

    # --- jobs and guests ----------------------------------------------------------------------------------------------

    def job(self, name: str, *vms: str, datastore: str = "vault", **settings: Any) -> None:
        """Create a job from alpha to beta, without guest processing: the guests are paused at the snapshot.

        By way of the database, because the command line does not offer every setting.
        """
        wanted: dict[str, Any] = {"guest_policy": GuestPolicy.OFF, "patience_s": DEFAULT_PATIENCE_S, **settings}
        jobs.create_job(self.database, Job(jobs.new_job_id(), name, "alpha", "beta", datastore, vms, **wanted))

    def begin(self, job: str, vm: LabVm, *options: str, env: Mapping[str, str] | None = None) -> Run:
        """Run a job; at return the snapshot of its VM is taken, and the guest runs again."""
        before = self._newest_session()
        with paused(vm):
            copies = frozen_copy(vm, self.place)
            process = self.pair.start("--json", "job", "run", job, *options, env=env)
            replica = vm.name + jobs.get_job(self.database, job).suffix
            run = Run(self, vm, replica, self._await_session(process, before), process, copies)
            run.until(lambda: any(step.name is Step.SNAPSHOT and step.state is StepState.SUCCESS
                                  for step in run.task.steps), "snapshot")  # fmt: skip
        return run

    def begin_all(self, job: str, *vms: LabVm) -> list[Run]:
        """Run a job of several VMs, which the caller keeps still."""
        before = self._newest_session()
        copies = [frozen_copy(vm, self.place) for vm in vms]
        process = self.pair.start("--json", "job", "run", job)
        session, suffix = self._await_session(process, before), jobs.get_job(self.database, job).suffix
        return [Run(self, vm, vm.name + suffix, session, process, copy) for vm, copy in zip(vms, copies, strict=True)]

    def again(self, run: Run, *, env: Mapping[str, str] | None = None) -> Run:
        """Another controller for the session of ``run``, whose own is dead."""
        return replace(run, process=self.pair.start("--json", "job", "run", run.report.job, env=env))

    def replicate(self, job: str, vm: LabVm, *options: str) -> TaskReport:
        """Run a job to its good end; everything is checked."""
        return self.begin(job, vm, *options).succeed()

    def _newest_session(self) -> int:
        return max((item.id for item in reports.list_sessions(self.database)), default=0)

    def _await_session(self, process: HostProcess, before: int) -> int:
        deadline = time.monotonic() + 30
        while (newest := self._newest_session()) == before:
            assert process.alive, process.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return newest

    # --- what is left -------------------------------------------------------------------------------------------------

    def replica_place(self, replica: str) -> Path:
        """The directory of a replica."""
        return self.store / replica

    def point_ids(self, replica: str) -> list[str]:
        """Restore points of a replica, oldest first."""
        return [str(point["id"]) for point in self._record(replica)["points"]]

    def _record(self, replica: str) -> dict[str, Any]:
        path = self.replica_place(replica) / "replica.json"
        found = json.loads(path.read_text())["replica"] if path.exists() else {"points": []}
        assert isinstance(found, dict)
        return found

    def check_point(self, run: Run, task: TaskReport) -> None:
        """The run's point is the newest, shows what the guest's disks held, and verifies; all older ones are intact."""
        assert task.restore_point is not None
        assert self.point_ids(run.replica)[-1] == task.restore_point
        self._known[run.replica, task.restore_point] = run.copies
        self.check_points(run.replica)
        assert self.pair.json("replica", "verify", run.replica)["ok"]
        self.assert_clean(run)

    def check_points(self, replica: str) -> None:
        """Every restore point shows what its guest's disks held at its snapshot."""
        place = self.replica_place(replica)
        points = self._record(replica)["points"]
        for point in points:
            copies = self._known[replica, point["id"]]
            assert {disk["name"] for disk in point["disks"]} == set(copies)
            for disk in point["disks"]:
                assert_same(place / "layers" / disk["layer"], copies[disk["name"]])
        kept = {point["id"] for point in points}
        for name, point in [key for key in self._known if key[0] == replica and key[1] not in kept]:
            for copy in self._known.pop((name, point)).values():
                copy.unlink()

    def assert_clean(self, run: Run, *, partial: bool = False) -> None:
        """Nothing of a run that ended is left, on either host; but for layers to be continued, if ``partial``."""
        found: list[str] = [line for host in self.lab.hosts for line in programs(host)]
        layers = self.replica_place(run.replica)
        found += [str(path) for path in self._stray_files(run)
                  if not (partial and path.is_relative_to(layers) and path.name.endswith(".partial"))]
        assert not found, found
        self.assert_released(run.vm)

    def assert_released(self, vm: LabVm) -> None:
        """No snapshot of ours is on the VM, its guest is not frozen, and each job has one checkpoint at the most."""
        with vm.domain() as domain:
            found = left_on_domain(domain, vm)
        assert not found, found

    def partial_files(self, replica: str) -> list[Path]:
        """Files of layers in the making."""
        return sorted(self.replica_place(replica).rglob("*.partial"))

    def _stray_files(self, run: Run) -> list[Path]:
        places = [self.scratch, *{disk.path.parent for disk in run.vm.disks}]
        found = [path for place in places if place.exists() for path in place.glob("*understudy-*")]
        found += [path for name in ("near", "far") for path in self.pair.state_dir(name).rglob("*.partial*")]
        place = self.replica_place(run.replica)
        return [*found, *unreferenced_files(place, self._record(run.replica))] if place.exists() else found


def disk_of(task: TaskReport, name: str = "vdb") -> DiskReport:
    """What a task says of a disk."""
    return next(disk for disk in task.disks if disk.name == name)


def fill(vm: LabVm, size_mib: int, at_mib: int = 0, disk: str = "vdb") -> None:
    """Write data that cannot be compressed to a disk of the guest, durably."""
    vm.run(f"dd if=/dev/urandom of=/dev/{disk} bs=1M seek={at_mib} count={size_mib} conv=fsync 2>/dev/null", 120)


@contextmanager
def paused(vm: LabVm) -> Iterator[None]:
    """The guest, unless it is off, stands still inside the block."""
    with vm.domain() as domain:
        if not domain.isActive():
            yield
            return
        domain.suspend()
        try:
            yield
        finally:
            domain.resume()


def programs(host: LabHost) -> list[str]:
    """Command lines of what a run starts, as far as they are there."""
    found = []
    for member in host.processes():
        try:
            line = Path(f"/proc/{member.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(program in line for program in _PROGRAMS) and "nsenter" not in line.split(" ")[0]:
            found.append(f"{host.name}: {line}")
    return found


@contextmanager
def cut(sites: SiteLab) -> Iterator[None]:
    """The line is cut inside the block."""
    sites.lab.link.cut()
    try:
        yield
    finally:
        sites.lab.link.restore()


@contextmanager
def site_lab(name: str, disks: Sequence[DataDisk] = (DataDisk(96 * MIB),)) -> Iterator[tuple[SiteLab, LabVm]]:
    """Two sites with enrolled proxies, and a running guest ``name`` on alpha; all of it ends with the context.

    The line between them has no limit yet: a first run need not take long.
    """
    with Lab.open(linked=True) as lab:
        sites = SiteLab(lab, lab.directory / "test")
        try:
            vm = lab.create_vm(lab.alpha, name, data_disks=disks)
            sites.pair.enrol("near", lab.alpha)
            sites.pair.enrol("far", lab.beta)
            vm.wait_agent(120)
            yield sites, vm
        finally:
            sites.close()
