"""Two scripted proxies and what lies between them: for tests of transfers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from understudy.context import Context
from understudy.errors import NotFound, UnderstudyError
from understudy.model.inventory import Vm, VmState
from understudy.model.job import Job, Proxy, ProxyKind
from understudy.model.replica import Consistency, ReplicaIdentity
from understudy.model.session import DiskReport, Step
from understudy.model.snapshot import ImageDisk, ServedDisk, SnapshotRequest, SourceSnapshot, Tag
from understudy.model.transfer import DiskPlan, Reason, TransferMode, TransportMode
from understudy.mover import api
from understudy.mover.work import error_fields
from understudy.replication.draft import HeldDraft
from understudy.replication.held import HeldTask, TransferSpec, Works
from understudy.replication.site import Lease, Site
from understudy.replication.transfer import Copying, copy_disks

SPEC = TransferSpec(Job("1", "nightly", "a", "b", "ds", ("web",)), "replica-1", "p0", "p1")
REQUEST = SnapshotRequest(Tag("1", "uuid-1", 7), ("vda",), (), None, "", (), "/scratch")
TAG = str(REQUEST.tag)
IDENTITY = ReplicaIdentity("replica-1", "web_replica", "1", "nightly", "web", "uuid-1", "uuid-2")
BEGIN = api.BeginPoint(api.ReplicaRef("qcow2", "/srv", "web_replica"), IDENTITY, 4, "p1", ())


Scripted = api.WorkStatus | Callable[[], object]
Scripts = Mapping[str, Sequence[Scripted]]


def vm(state: VmState = VmState.RUNNING) -> Vm:
    return Vm("web", "uuid-1", state, "x86_64", "q35", "bios", 1, 1, (), (), False, False, "<domain/>")


def running(**progress: Any) -> api.WorkStatus:
    return api.WorkStatus(api.WorkState.RUNNING, 0.1, api.Progress(**progress))


def done(**progress: Any) -> api.WorkStatus:
    return api.WorkStatus(api.WorkState.DONE, 2.0004, api.Progress(**progress))


def failed(error: UnderstudyError) -> api.WorkStatus:
    return api.WorkStatus(api.WorkState.FAILED, 1.0, api.Progress(), error_fields(error))


@dataclass
class Mover:
    """Answers by script: the statuses of a disk's works one after the other, the last one again and again.

    :ivar scripts: by disk; an act in a script happens just before the next status is asked for.
    :ivar problems: raised for requests of a kind: always, or one for each request of a list (None: no problem).
    :ivar forgotten: works that the proxy does not know any more, as after a restart.
    """

    name: str
    scripts: dict[str, list[Scripted]] = field(default_factory=dict)
    problems: dict[type, UnderstudyError | list[UnderstudyError | None]] = field(default_factory=dict)
    requests: list[object] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    most_active: int = 0
    works: list[str] = field(default_factory=list)

    def call(self, request: object, response_type: type) -> object:
        self.requests.append(request)
        self._break(type(request))
        match request:
            case api.CopyDisk(read=read) | api.SendDisk(read=read):
                return api.WorkStarted(self.begin(read.disk))
            case api.ReceiveDisk(disk=disk):
                work = self.begin(disk)
                return api.ReceiveStarted(work, f"ticket-{work}", f"/run/{disk}.rx")
            case api.WorkQuery(work=work):
                return self.status(work)
            case api.RedirectSend(work=work) if work in self.forgotten or work not in self.active:
                raise NotFound(f"work {work!r}", "this proxy does not send for it")
            case api.CancelWork(work=work):
                self.active.discard(work)
                return api.Nothing()
            case api.OpenExport(image=image):
                key = f"{image}#{len(self.of(api.OpenExport))}"
                return api.OpenedExport(key, api.NbdSource(f"{key}.nbd", "x", ""))
            case api.BeginPoint():
                return api.DraftOpened(f"draft-{len(self.of(api.BeginPoint)) + 1}", ())
            case _:
                return api.Nothing()

    def _break(self, kind: type) -> None:
        problem = self.problems.get(kind)
        if isinstance(problem, list):
            problem = problem.pop(0) if problem else None
        if problem is not None:
            raise problem

    def begin(self, disk: str) -> str:
        """A work of a disk: the first is called ``<mover>-<disk>``, others have a number."""
        number = sum(work.split("-")[1] == disk for work in self.works) + 1
        work = f"{self.name}-{disk}" + (f"-{number}" if number > 1 else "")
        self.works.append(work)
        self.active.add(work)
        self.most_active = max(self.most_active, len(self.active))
        return work

    def restart(self) -> None:
        """Forget all that was under way."""
        self.forgotten |= {*self.works, *self.active}
        self.active.clear()

    def status(self, work: str) -> api.WorkStatus:
        script = self.scripts.setdefault(work.split("-")[1], [done()])
        while callable(act := script[0]):
            act()
            script.pop(0)
        if work in self.forgotten:
            raise NotFound(f"work {work!r}", "this proxy does not know it")
        status = script.pop(0) if len(script) > 1 else script[0]
        assert isinstance(status, api.WorkStatus)
        if status.state is not api.WorkState.RUNNING:
            self.active.discard(work)
        return status

    def of(self, kind: type) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]


@dataclass
class Journal:
    reports: list[tuple[DiskReport, bool]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        self.steps.append(step)
        yield

    def disk(self, report: DiskReport, final: bool) -> None:
        self.reports.append((report, final))

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def waits(self, name: str) -> list[str]:
        """What was told of why a disk waits, without repetitions."""
        found: list[str] = []
        for report, _ in self.reports:
            if report.name == name and found[-1:] != [report.waiting]:
                found.append(report.waiting)
        return found


@dataclass
class Limits:
    """Resources, as far as transfers need them."""

    sending_now: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    problems: list[UnderstudyError] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)

    def restarted(self, source: Proxy) -> None:
        self.restarts.append(source.name)

    @contextmanager
    def sending(self, source: Proxy, target: Proxy) -> Iterator[tuple[str, ...]]:
        self.asked.append((source.name, target.name))
        if self.problems:
            raise self.problems.pop(0)
        self.sending_now += 1
        try:
            yield ("from:near",)
        finally:
            self.sending_now -= 1


@dataclass
class Ends:
    """The two ends of a task."""

    source_mover: Mover
    target_mover: Mover
    same_mover: bool
    journal: Journal = field(default_factory=Journal)
    resources: Limits = field(default_factory=Limits)
    source_proxy: Proxy = field(default_factory=lambda: Proxy("near", "", 8))
    target_proxy: Proxy = field(default_factory=lambda: Proxy("far", "", 8))
    transport: TransportMode = TransportMode.LOCAL

    by_socket = Site.by_socket
    one_machine = Site.one_machine


def one_end(**scripts: Sequence[Scripted]) -> Ends:
    """One child proxy."""
    mover, proxy = Mover("local", _lists(scripts)), Proxy("local", "", 8)
    return Ends(mover, mover, same_mover=True, source_proxy=proxy, target_proxy=proxy)


def two_ends(near: Scripts, far: Scripts) -> Ends:
    """Two child proxies."""
    return Ends(Mover("near", _lists(near)), Mover("far", _lists(far)), same_mover=False)


def _lists(scripts: Scripts) -> dict[str, list[Scripted]]:
    return {disk: list(script) for disk, script in scripts.items()}


def two_services(near: Scripts, far: Scripts) -> Ends:
    """Two proxies on other machines."""
    ends = two_ends(near, far)
    ends.source_proxy = service("near", "a")
    ends.target_proxy = service("far", "b")
    return ends


def service(name: str, host: str) -> Proxy:
    return Proxy(name, host, 8, ProxyKind.SERVICE, f"{name}-identity", f"{name}:9000", f"{name}:9001")


def plan(name: str, chained: bool = True) -> DiskPlan:
    mode = TransferMode.DIGEST_SCAN if chained else TransferMode.FULL
    return DiskPlan(name, 1000, mode, Reason.FORCED if chained else Reason.FIRST_RUN, chained)


@dataclass
class Slots:
    """A lease that gives so many slots; counts what comes back."""

    count: int = 8
    taken: int = 0
    given_back: int = 0

    def take(self) -> str:
        if self.taken - self.given_back >= self.count:
            return "no free task slot on proxy 'near'"
        self.taken += 1
        return ""

    def give_back(self) -> None:
        self.given_back += 1

    def lease(self, ends: Ends) -> Lease:
        site = cast("Site", ends)
        return Lease(site.source_proxy, site.target_proxy, site.source_mover, site.target_mover, site.transport,
                     self.take, self.give_back)  # fmt: skip


def served(*names: str) -> tuple[ServedDisk | ImageDisk, ...]:
    return tuple(ServedDisk(name, "/run/backup.sock", name, f"dirty-{name}") for name in names)


@dataclass
class Copy:
    """A run of :func:`copy_disks`, and what it told."""

    ends: Ends
    plans: tuple[DiskPlan, ...]
    disks: tuple[ServedDisk | ImageDisk, ...] = ()
    slots: Slots = field(default_factory=Slots)
    works: dict[str, Works] = field(default_factory=dict)
    state: VmState = VmState.RUNNING
    spec: TransferSpec = SPEC
    ctx: Context = field(default_factory=Context)
    exports: dict[str, api.OpenedExport] = field(default_factory=dict)
    draft: HeldDraft = field(init=False)
    noted: list[dict[str, Works]] = field(default_factory=list)

    @property
    def held(self) -> HeldTask:
        disks = self.disks or served(*(plan.name for plan in self.plans))
        return HeldTask(
            self.spec, "near", "far", vm(self.state), REQUEST, self.plans,
            SourceSnapshot("2026-01-01T00:00:00.000+00:00", disks, None), Consistency.CRASH, None, BEGIN, "draft-1",
            self.works, exports=self.exports,
        )  # fmt: skip

    def run(self) -> tuple[DiskReport, ...]:
        site = cast("Site", self.ends)
        self.draft = HeldDraft(site, BEGIN, "draft-1")
        copying = Copying(self.held, self.draft, lambda works: self.noted.append(dict(works)))
        return copy_disks(self.ctx, site, copying, self.slots.lease(self.ends))


def copy(ends: Ends, *names: str, parallel: int = 8, ctx: Context | None = None) -> tuple[DiskReport, ...]:
    """Copy disks that the platform serves; also proves that every slot that was taken is given back once."""
    slots = Slots(parallel)
    run = Copy(ends, tuple(plan(name) for name in names), slots=slots, ctx=ctx or Context())
    try:
        return run.run()
    finally:
        assert slots.taken == slots.given_back


HELD = Copy(one_end(), (plan("vda"),)).held
