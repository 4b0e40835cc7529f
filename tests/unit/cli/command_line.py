"""A command line in a temporary home, with a fake of the controller's acts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from understudy.cli.run import run
from understudy.controller import catalog, interrupted, journal, lock, replicas, reports
from understudy.controller.database import Database, open_database
from understudy.controller.leftovers import Swept
from understudy.controller.proxies import proxy_warnings
from understudy.controller.records import (
    CheckedGuest,
    CheckedHost,
    CheckedProxy,
    DueAnswer,
    DueVerification,
    FailoverAnswer,
    InvitedProxy,
    ProxyWish,
    RemovedProxy,
    ReplicaRecord,
    VerifyAnswer,
    VerifyWish,
)
from understudy.controller.recovery import end_dead_sessions
from understudy.errors import NotFound, Refused, ReplicaError, UnderstudyError
from understudy.guests.checking import GuestCheck
from understudy.model.access import ServerCertificate
from understudy.model.estimate import DiskEstimate, Sums
from understudy.model.exclusion import Exclusion
from understudy.model.guest import Component, GuestTransport
from understudy.model.health import DiskHealth
from understudy.model.inventory import Disk, HostFacts, Nic, Vm, VmState
from understudy.model.job import Datastore
from understudy.model.live_test import LiveStep, LiveTestReport, LiveTestWish
from understudy.model.replica import (
    Consistency,
    ConversionWish,
    PointDisk,
    Replica,
    ReplicaIdentity,
    ReplicaState,
    RestorePoint,
)
from understudy.model.session import DiskReport, SessionKind, SessionReport, SessionState, Step
from understudy.model.transfer import Reason, TransferMode, TransportMode
from understudy.mover.api import MoverInfo, Progress, ReplicaFacts, VerifiedDisk
from understudy.storage.values import DatastoreFacts, HeadFacts, RebuiltReplica
from understudy.units import GIB, KIB, MIB

VM = Vm(
    name="web [red]1[/red]", uuid="uuid-1", state=VmState.RUNNING, arch="x86_64", machine="q35", firmware="bios",
    memory_bytes=2 * GIB, vcpus=2, disks=(Disk("vda", "/img/a.qcow2", "qcow2", 10 * GIB, obstacle="shared"),),
    nics=(Nic("52:54:00:00:00:01", "network", "default"),), has_agent_channel=True, agent_connected=False,
    definition="<domain>SECRET</domain>",
)  # fmt: skip
FACTS = HostFacts("kvm1.example", "9.0.0", "7.2.22", 16, 64 * GIB, (64055, 64055))
DISK = DiskReport("vda", TransferMode.INCREMENTAL, Reason.NONE, 10 * GIB, 8 * MIB, 6 * MIB, 2 * MIB, 512 * KIB,
                  10 * GIB, 1.5, "network", TransportMode.NETWORK, {"source": 0.25, "network": 0.75},
                  resumed_bytes=3 * GIB, reconnects=2, checked_blocks=16)  # fmt: skip


#: Of a VM with two disks; the changes of the second are not tracked.
ESTIMATES = (
    DiskEstimate("vda", TransferMode.INCREMENTAL, Reason.NONE, 10 * GIB, Sums(6 * GIB, GIB, 8 * MIB, 12 * MIB, 5 * MIB),
                 {"swap": 2 * GIB, "mask": GIB}, ("disk vda, partition 3: luks is not read",)),
    DiskEstimate("vdb", TransferMode.DIGEST_SCAN, Reason.TRACKING_UNSUPPORTED, GIB, Sums(GIB, 0, None, GIB, GIB)),
)  # fmt: skip


def point(number: int) -> RestorePoint:
    """The restore point ``p<number>``."""
    disks = (PointDisk("vda", 10 * GIB, f"vda-{number}.qcow2", "", f"vda-p{number}.digest", 1234),)
    return RestorePoint(f"p{number}", f"2026-01-0{number}T00:00:00+00:00", Consistency.CRASH, number, MIB, disks)


REPLICA = Replica(
    ReplicaIdentity("rid-1", "web_replica", "unknown", "elsewhere", "web", "src-uuid", "dom-uuid"),
    ReplicaState.READY, (point(1), point(2)), "p2",
)  # fmt: skip


GUEST = GuestCheck(GuestTransport.QGA, {GuestTransport.SSH: "no route"}, Component.RUNTIME, "1",
                   (("postgresql", "15/main", "port 5432"),), True)  # fmt: skip

CERTIFICATE = ServerCertificate(
    "CN=vc.example", "CN=own\x1b[2J", "2026-01-01T00:00:00+00:00", "2028-01-01T00:00:00+00:00", "AB:" * 31 + "CD", False
)

CHECKED = CheckedHost(FACTS)
LIVE = LiveTestReport(
    (LiveStep("first snapshot", 1.5, {"note 1": "disk [fast] web/web.vmdk", "quiesced": True, "size": 9}),
     LiveStep("second snapshot", 0.25)),
    ("web", "fast", "vc.example"),
)  # fmt: skip


@dataclass
class FakeServices:
    """Fulfils :class:`understudy.cli.services.Services`; runs sessions with the ``outcome`` it is told."""

    home: Path
    database: Database
    outcome: SessionState = SessionState.SUCCESS
    error: Exception | None = None
    calls: list[Any] = field(default_factory=list)
    datastore: DatastoreFacts = field(default_factory=lambda: DatastoreFacts("/srv", True, True, 100 * GIB, 40 * GIB))
    guest: GuestCheck = GUEST
    unmarked: UnderstudyError | None = None
    told: bool | None = None
    certificate: ServerCertificate = CERTIFICATE
    checked: CheckedHost = CHECKED
    live: LiveTestReport = LIVE
    held: bool = False
    swept: tuple[Swept, ...] = ()
    failover_note: str = ""
    verified: tuple[VerifiedDisk, ...] = (VerifiedDisk("vda", 100, 0, (), ""),)
    unverifiable: tuple[str, ...] = ()
    due: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    health: tuple[DiskHealth, ...] = ()
    #: By point; None for what is lost.
    left_out_by: dict[str, tuple[Exclusion, ...] | None] = field(default_factory=dict)

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def server_certificate(self, uri: str) -> ServerCertificate:
        self._called("server_certificate", uri)
        return self.certificate

    def check_host(self, name: str) -> CheckedHost:
        self._called("check_host", name)
        return self.checked

    def live_test(self, name: str, wish: LiveTestWish, on_step: Callable[[LiveStep], None]) -> LiveTestReport:
        self._called("live_test", name, wish)
        for step in self.live.steps:
            on_step(step)
        return self.live

    def list_vms(self, name: str) -> tuple[Vm, ...]:
        self._called("list_vms", name)
        return (VM,)

    def check_guests(self, job: str, vm: str, accept: bool) -> tuple[CheckedGuest, ...]:
        self._called("check_guests", job, vm, accept)
        return (CheckedGuest("web", self.guest, "SHA256:abc" if accept else ""),)

    def change_agent(self, job: str, vm: str, *, install: bool) -> GuestTransport:
        self._called("change_agent", job, vm, install)
        return GuestTransport.QGA

    def check_datastore(self, name: str) -> DatastoreFacts:
        self._called("check_datastore", name)
        return self.datastore

    def mark_datastore(self, name: str) -> Datastore:
        if self.unmarked is not None:
            raise self.unmarked
        return catalog.change_datastore(self.database, name, marker=self.datastore.marker)

    def move_datastore(self, name: str, path: str, accept: bool) -> Datastore:
        self._called("move_datastore", name, path, accept)
        return catalog.change_datastore(self.database, name, path=path or None, marker="m-2")

    def check_proxy(self, name: str) -> CheckedProxy:
        self._called("check_proxy", name)
        info = MoverInfo(name, 4711, {"qemu": "7.2", "python": "3.11"}, "proxy-1.understudy.internal", 2)
        proxy = catalog.get_proxy(self.database, name)
        return CheckedProxy(proxy, info, -75.3, proxy_warnings(info, -75.3, "unknown"))

    def invite_proxy(self, wish: ProxyWish) -> InvitedProxy:
        self._called("invite_proxy", wish)
        return InvitedProxy(wish.name, "ust1.x", "2027-01-01T00:00:00.000+00:00", wish.controller)

    def run_enrolment(self) -> None:
        self._called("run_enrolment")

    def remove_proxy(self, name: str) -> RemovedProxy:
        self._called("remove_proxy", name)
        catalog.remove_proxy(self.database, name)
        return RemovedProxy(name, self.told)

    def run_session(self, session_id: int, on_progress: Callable[[SessionReport], None] | None) -> SessionReport:
        self._called("run_session", session_id)
        on_progress = on_progress or (lambda _: None)
        if reports.session_report(self.database, session_id).kind is SessionKind.ESTIMATE:
            return self._estimate(session_id, on_progress)
        resumed = {task.vm: task.id for left in interrupted.held_sessions(self.database) for task in left.resumed}
        for vm in self._vms(session_id):
            task = resumed.get(vm) or journal.start_task(self.database, session_id, vm)
            journal.start_step(self.database, task, Step.READ)
            journal.update_disk(self.database, task, replace(DISK, processed_bytes=GIB))
            on_progress(reports.session_report(self.database, session_id))
            journal.update_disk(self.database, task, DISK)
            journal.end_step(self.database, task, Step.READ, seconds=1.5)
            self._end(task, vm)
        journal.end_session(self.database, session_id)
        report = reports.session_report(self.database, session_id)
        on_progress(report)
        return report

    def _estimate(self, session_id: int, on_progress: Callable[[SessionReport], None]) -> SessionReport:
        for vm in self._vms(session_id):
            task = journal.start_task(self.database, session_id, vm)
            if self.outcome is not SessionState.FAILED:
                journal.store_estimate(self.database, task, ESTIMATES)
            self._end(task, vm)
        journal.end_session(self.database, session_id)
        on_progress(report := reports.session_report(self.database, session_id))
        return report

    def _vms(self, session_id: int) -> tuple[str, ...]:
        journal.claim_session(self.database)
        return tuple(task.vm for task in reports.session_report(self.database, session_id).tasks)

    def interrupted_session(self, job: str) -> int | None:
        end_dead_sessions(self.database, lambda _: self.held)
        return interrupted.session_of(self.database, job) if lock.holder(self.home) is None else None

    def _end(self, task: int, vm: str) -> None:
        failed = self.outcome is SessionState.FAILED
        journal.end_task(
            self.database, task, self.outcome, restore_point=None if failed else "p1", consistency="crash",
            frozen_ms=97.25, error=f"replicate {vm!r}: datastore is full; free some space" if failed else None,
            warnings=("no guest agent",) if self.outcome is SessionState.WARNING else (),
        )  # fmt: skip

    def start_background_controller(self) -> None:
        self._called("start_background_controller")

    def run_controller(self) -> None:
        self._called("run_controller")

    def replica_facts(self, replica: ReplicaRecord) -> ReplicaFacts:
        self._called("replica_facts", replica.name)
        points = tuple(replace(point, excluded=f"{point.id}.excluded") if point.id in self.left_out_by else point
                       for point in replica.replica.points)
        return ReplicaFacts(
            replica=replace(replica.replica, points=points),
            head=HeadFacts("p2", True, {"vda": "/srv/web_replica/head/vda.qcow2"}),
            last_attempt=2, damage={"p1": ["vda-1.qcow2 is missing"]},
            images={f"p{n}": {"vda": f"/srv/web_replica/layers/vda-{n}.qcow2"} for n in (1, 2)},
            digests={f"p{n}": {"vda": f"/srv/web_replica/digests/vda-p{n}.digest"} for n in (1, 2)},
            health=self.health,
        )  # fmt: skip

    def left_out(self, replica: ReplicaRecord, point: str) -> tuple[Exclusion, ...]:
        self._called("left_out", replica.name, point)
        found = self.left_out_by[point]
        if found is None:
            raise ReplicaError(f"read {point}.excluded", "it is missing")
        return found

    def verify_point(
        self, replica: ReplicaRecord, wish: VerifyWish, on_progress: Callable[[Progress], None]
    ) -> VerifyAnswer:
        self._called("verify_point", replica.name, wish.point, wish.rate, wish.restart)
        on_progress(Progress(total=100, processed=50))
        if wish.point in self.unverifiable:
            raise Refused(f"verify {wish.point}", "it is being verified already")
        return VerifyAnswer(self.verified, wish.until is None)

    def due_verifications(self) -> DueAnswer:
        self._called("due_verifications")
        (record,) = replicas.list_replicas(self.database)
        return DueAnswer(tuple(DueVerification(record, point, point == "p2", 7) for point in self.due), self.problems)

    def adopt_replica(self, datastore: str, name: str) -> ReplicaRecord:
        self._called("adopt_replica", datastore, name)
        if name != REPLICA.identity.name:
            raise NotFound(f"replica {name!r}", "no such replica in the datastore")
        return replicas.save_replica(self.database, REPLICA, datastore, "dr")

    def rebuild_replica(
        self, datastore: str, name: str, dry_run: bool, on_progress: Callable[[Progress], None]
    ) -> RebuiltReplica:
        self._called("rebuild_replica", datastore, name, dry_run)
        on_progress(Progress(total=100, processed=50))
        return RebuiltReplica(REPLICA, {"p0": "disk vda: [b]bad[/b]"}, ("layers/vda-p0.qcow2",), ("in failover",))

    def delete_replica(self, replica: ReplicaRecord) -> None:
        self._called("delete_replica", replica.name)
        replicas.forget_replica(self.database, replica.replica.identity.id)

    def start_failover(self, replica: ReplicaRecord, point: str, wish: ConversionWish) -> FailoverAnswer:
        self._called("start_failover", replica.name, point, wish)
        running = replace(replica.replica, state=ReplicaState.FAILOVER, head_point=point)
        warned = ("a card is connected to nothing",)
        return FailoverAnswer(replace(replica, replica=running), warned, self.failover_note)

    def undo_failover(self, replica: ReplicaRecord) -> FailoverAnswer:
        self._called("undo_failover", replica.name)
        return FailoverAnswer(replica)

    def sweep(self, hosts: Sequence[str], dry_run: bool) -> tuple[Swept, ...]:
        self._called("sweep", tuple(hosts), dry_run)
        return self.swept

    def close(self) -> None:
        self.calls.append(("close",))


@dataclass(frozen=True)
class Result:
    """What a command left: exit status, stdout, stderr."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; also proves that nothing else is there."""
        assert self.err == "", self.err
        return json.loads(self.out)


class Terminal(io.StringIO):
    """Output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class CommandLine:
    """Runs commands in this process, in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings: dict[str, Any] = {}
        self.services: FakeServices | None = None

    def __call__(self, *arguments: str, terminal: bool = False, typed: str = "") -> Result:
        """Run a command; with ``terminal``, ``typed`` is what somebody types."""
        kind = Terminal if terminal else io.StringIO
        out, err = kind(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), patch("sys.stdin", kind(typed)):
            status = run(["--home", str(self.home), *arguments], self._open)
        return Result(status, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str) -> Result:
        """Run a command that must succeed."""
        result = self(*arguments)
        assert (result.status, result.err) == (0, ""), result
        return result

    def json(self, *arguments: str) -> Any:
        """Run a command that must succeed, and return its JSON document."""
        return self.ok("--json", *arguments).document

    def refused(self, *arguments: str, status: int = 2) -> str:
        """Run a command that must fail with ``status``; its one error line without ``error: ``."""
        result = self(*arguments)
        assert result.status == status, result
        assert result.err.startswith("error: "), result.err
        assert result.err.count("\n") == 1, result.err
        assert "Traceback" not in result.err
        return result.err.removeprefix("error: ").rstrip("\n")

    def with_job(self) -> CommandLine:
        """Add two hosts, a datastore, the job ``nightly`` for ``web`` and ``db``, and a replica of ``web``."""
        self.ok("host", "add", "prod", "qemu+ssh://root@prod/system")
        self.ok("host", "add", "dr", "qemu:///system")
        self.ok("datastore", "add", "vault", "--host", "dr", "--path", "/srv")
        self.ok("job", "create", "nightly", "--source", "prod", "--vm", "web", "--vm", "db", "--target", "dr",
                "--datastore", "vault")  # fmt: skip
        self.ok("replica", "adopt", "vault/web_replica")
        return self

    def opened(self) -> Database:
        """The home's database; the caller closes it."""
        return open_database(self.home)

    def _open(self, home: Path, database: Database) -> FakeServices:
        self.services = FakeServices(home, database, **self.settings)
        return self.services

    @property
    def calls(self) -> list[Any]:
        """The acts that the last command asked for, its end included."""
        assert self.services is not None
        return self.services.calls


class Explosion(UnderstudyError):
    """An error for tests: any act may raise it."""

    code = "explosion"
