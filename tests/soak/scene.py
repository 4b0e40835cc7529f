"""The hosts, VMs and jobs of a soak, and what one round does with them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from tests.soak.content import image_chunks, standing_still, vm_truth
from tests.soak.drawing import DISK_PARTS, Before, Fault, Round, Write
from tests.soak.faults import host_faults
from tests.soak.session import Outcome, run_session
from tests.soak.tally import Tally, Truth
from tests.system.aftermath import Bench
from tests.system.installation import Installation
from tests.system.steps import QUIET
from understudy.lab.disks import DataDisk
from understudy.lab.errors import LabError
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm
from understudy.lab.writer import GuestWriter
from understudy.units import KIB

POINTS = 3
_PAUSE_MS = 150


@dataclass(frozen=True)
class SoakJob:
    """A job with one VM."""

    name: str
    vm: LabVm
    replica: str


class Scene:
    """Two hosts, two VMs, three jobs; every session that they run is known to ``tally``."""

    def __init__(self, lab: Lab, place: Path, tally: Tally, say: Callable[[str], None]) -> None:
        self._work = place
        self._tally = tally
        self._say = say
        self._spoilt: set[Path] = set()
        self.installation = Installation(lab, place / "site")
        size = DISK_PARTS * 64 * KIB
        mixed = lab.create_vm(lab.alpha, "mixed", data_disks=[DataDisk(size, format="raw")])
        double = lab.create_vm(lab.alpha, "double", data_disks=[DataDisk(size)])
        self.jobs = [
            self._job("backup", mixed, "--snapshot-mode", "backup"),
            self._job("external", double, "--snapshot-mode", "external"),
            self._job("wired", double, "--snapshot-mode", "backup", "--source-proxy", "second",
                      "--target-proxy", "local"),
        ]

    def _job(self, name: str, vm: LabVm, *options: str) -> SoakJob:
        if "second" in options:
            self.installation.ok("proxy", "add", "second")
        options = ("--points", str(POINTS), "--suffix", f"_{name}", *QUIET, *options)
        self.installation.job(name, vm.name, options=options)
        return SoakJob(name, vm, f"{vm.name}_{name}")

    # --- a round ------------------------------------------------------------------------------------------------------

    def play(self, drawn: Round) -> None:
        """Do everything that was drawn; what must not be is told to the tally."""
        job = self.jobs[drawn.job]
        self._ready(job.vm)
        with ExitStack() as undo:
            self._operate(drawn, job, undo)
            self._write(job.vm, drawn.writes)
            host_fault = host_faults(self.installation, job.vm, drawn.pick, self._spoilt).get(drawn.fault)
            during = drawn.during and drawn.fault.may_fail
            if host_fault is not None and not during:
                self._inject(drawn.fault, host_fault)
            self._check_leaving(job)
            outcome = self._session(drawn, job, host_fault if during else None)
        self._say(f"{job.name}: {drawn.fault}{' ' if drawn.point else ''}{drawn.point}: {outcome.state}")
        if outcome.state in ("killed", "failed", "refused"):
            Bench(self.installation, job.vm).wait_processes_gone()
            if not drawn.fault.may_fail:
                self._tally.problems.append(f"{job.name}: {outcome.state} without a reason for it: {_why(outcome)}")

    def _session(self, drawn: Round, job: SoakJob, host_fault: Callable[[], bool] | None) -> Outcome:
        armed = {Fault.KILL_POINT: [f"{drawn.point}=kill"], Fault.ERROR_POINT: [f"{drawn.point}=error"]}
        options = ["--full-scan"] if drawn.full_scan else []
        before = self._last_session(job)
        with ExitStack() as still:
            still.enter_context(standing_still(job.vm))
            truth = vm_truth(job.vm, self._work)

            def held() -> None:
                still.close()
                self._write(job.vm, drawn.meanwhile)
                if host_fault is not None:
                    self._inject(drawn.fault, host_fault)

            outcome = run_session(self.installation, job.name, armed.get(drawn.fault, []), options, held, still.close)
        if any("was planned anew" in text for text in _warnings(outcome)) and not job.vm.is_running():
            truth = vm_truth(job.vm, self._work)  # the point is of the VM as it went off, not of the first snapshot
        if drawn.point:
            reached = outcome.status != 0 or bool(_warnings(outcome))
            self._tally.faults[drawn.fault if reached else f"{drawn.fault}, not on the way"] += 1
        number = self._last_session(job)
        if number != before:
            self._tally.truths[(job.replica, number)] = truth
        self._tally.session(outcome.state, outcome.report)
        self._tally.forget(job.replica, [point["session"] for point in self._points(job)], number)
        return outcome

    def _inject(self, fault: Fault, act: Callable[[], bool]) -> None:
        try:
            done = act()
        except LabError as exc:
            done = False
            self._say(f"{fault}: cannot be done now: {exc}")
        if done:
            self._tally.faults[fault] += 1

    def _last_session(self, job: SoakJob) -> int:
        sessions = self.installation.json("session", "list", "--job", job.name)
        return int(sessions[0]["id"]) if sessions else 0

    # --- the guest ----------------------------------------------------------------------------------------------------

    def _ready(self, vm: LabVm) -> None:
        """The guest is up, and never stops writing."""
        if not vm.is_running():
            vm.start()
        vm.wait_agent(120)
        for place in ("/dev/vdb", "/data/writer"):
            state = "/run/writer-" + place.strip("/").replace("/", "-")
            if vm.run(f"[ -d /proc/$(cat {state}.pid 2>/dev/null || echo none) ] && echo alive || true").strip():
                continue
            if place.startswith("/dev"):
                GuestWriter.on_device(vm, place, pause_ms=_PAUSE_MS)
            else:
                GuestWriter.in_files(vm, place, pause_ms=_PAUSE_MS)

    def _write(self, vm: LabVm, writes: tuple[Write, ...]) -> None:
        if writes and vm.is_running():
            vm.run("set -e; " + "; ".join(write.script for write in writes), timeout_s=120)

    # --- the operator -------------------------------------------------------------------------------------------------

    def _operate(self, drawn: Round, job: SoakJob, undo: ExitStack) -> None:
        points = self._points(job)
        if not points or drawn.before is Before.NOTHING:
            return
        point = points[drawn.pick % len(points)]
        self._tally.acts[drawn.before] += 1
        if drawn.before is Before.VERIFY:
            self._verify(job, point)
        elif drawn.before is Before.FAILOVER:
            self._fail_over(job, point)
            time.sleep(1 + drawn.pick % 5)
            self._must("failover", "undo", job.replica)
        else:
            undo.callback(self._stop_replica, job)
            self._start_replica(job)
            time.sleep(1 + drawn.pick % 5)

    def _fail_over(self, job: SoakJob, point: Any) -> None:
        """As an operator does it, who drops first what the replica changed when it was started by hand."""
        command = ("failover", "start", job.replica, "--point", point["id"])
        answer = self.installation.run(*command)
        if "started by hand" in answer.err:
            self._must("failover", "undo", job.replica)
            self._must(*command)
        elif answer.status != 0:
            self._tally.problems.append(f"{' '.join(command)}: {answer.err.strip()}")

    def _must(self, *command: str) -> None:
        answer = self.installation.run(*command)
        if answer.status != 0:
            self._tally.problems.append(f"{' '.join(command)}: {answer.err.strip() or answer.out.strip()}")

    def _verify(self, job: SoakJob, point: Any) -> None:
        """Its own digests find a point good, unless the soak has spoilt them; its content is compared elsewhere."""
        digests = self.installation.store / job.replica / "digests"
        if self._spoilt.isdisjoint(digests / disk["digest"] for disk in point["disks"]):
            self._must("replica", "verify", job.replica, "--point", point["id"])

    def _start_replica(self, job: SoakJob) -> None:
        with self.installation.lab.beta.connection() as beta:
            domain = beta.lookupByName(job.replica)
            try:
                if not domain.isActive():
                    domain.create()
            except libvirt.libvirtError as exc:
                # A mover that was killed while it changed the head leaves none until the next session or failover.
                self._say(f"{job.replica} cannot be started by hand now: {exc}")

    def _stop_replica(self, job: SoakJob) -> None:
        with self.installation.lab.beta.connection() as beta:
            domain = beta.lookupByName(job.replica)
            if domain.isActive():
                domain.destroy()

    # --- the truth ----------------------------------------------------------------------------------------------------

    def _points(self, job: SoakJob) -> list[Any]:
        record = self.installation.store / job.replica / "replica.json"
        if not record.exists():
            return []
        found = json.loads(record.read_text())["replica"]["points"]
        assert isinstance(found, list)
        return found

    def _check(self, job: SoakJob, point: Any) -> None:
        layers = self.installation.store / job.replica / "layers"
        found: Truth = {disk["name"]: image_chunks(layers / disk["layer"], "qcow2", self._work)
                        for disk in point["disks"]}
        self._tally.point(job.replica, point, found)

    def _check_leaving(self, job: SoakJob) -> None:
        """What the next session's retention will drop is checked before."""
        points = self._points(job)
        for point in points[: max(0, len(points) + 1 - POINTS)]:
            self._check(job, point)

    def check_all(self) -> None:
        """Every retained point, after its own digests: nothing is left to the soak's own way of reading."""
        for job in self.jobs:
            for point in self._points(job):
                self._check(job, point)
                self._verify(job, point)

    def free_bytes(self) -> int:
        """Space left where all this lies."""
        return shutil.disk_usage(self._work).free


def _why(outcome: Outcome) -> str:
    errors = [task["error"] for task in outcome.report["tasks"] if task["error"]] if outcome.report else []
    return "; ".join([*errors, outcome.error])


def _warnings(outcome: Outcome) -> list[str]:
    return [text for task in outcome.report["tasks"] for text in task["warnings"]] if outcome.report else []

