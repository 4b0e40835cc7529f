"""What of all that is found did dead sessions leave, and what may be done with it? Pure: facts in, a plan out (S7)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from understudy.controller.leftovers import Action, Kind, Leftover, Scope
from understudy.controller.records import FrozenGuest
from understudy.model.job import Datastore, Job
from understudy.model.snapshot import Mark, job_mark, vm_mark
from understudy.mover.api import DatastoreSurvey, DigestCopy, HeldFacts, SurveyedReplica, TaggedFile
from understudy.platforms import VmTraces

_RESTART = ("systemctl restart understudy-proxy",)


@dataclass(frozen=True)
class HostVm:
    """A VM, and the name of its host."""

    host: str
    traces: VmTraces


@dataclass(frozen=True)
class HostFile:
    """A file of ours; ``hosts`` are the names of those whose files the proxy sees that found it."""

    hosts: tuple[str, ...]
    file: TaggedFile


@dataclass(frozen=True)
class SurveyedPlace:
    """A datastore; without ``survey`` it could not be looked at, and ``problem`` says why."""

    datastore: Datastore
    survey: DatastoreSurvey | None
    problem: str = ""

    @property
    def replicas(self) -> tuple[SurveyedReplica, ...]:
        """The replicas that were found."""
        return self.survey.replicas if self.survey else ()

    @property
    def complete(self) -> bool:
        """Whether every replica's record was read."""
        return self.survey is not None and self.survey.exists and all(item.replica for item in self.replicas)


@dataclass(frozen=True)
class Unseen:
    """A place that could not be looked at; ``failed`` if it should have been."""

    place: str
    why: str
    failed: bool


@dataclass(frozen=True)
class Facts:
    """All that was found.

    :ivar busy: job id -> the session that works for it now, or that can be gone on with.
    :ivar busy_vms: ``(host, VM)`` on which a session works.
    :ivar held: proxy name -> what it still runs.
    :ivar copies: proxy name -> its source side digest copies.
    :ivar proxy_hosts: proxy name -> the host for which it was added, or empty.
    :ivar recorded: replicas that the database knows: id -> ``(job id, UUID of the source VM)``.
    """

    jobs: tuple[Job, ...]
    busy: Mapping[str, int] = field(default_factory=dict)
    busy_vms: frozenset[tuple[str, str]] = frozenset()
    frozen: tuple[FrozenGuest, ...] = ()
    vms: tuple[HostVm, ...] = ()
    files: tuple[HostFile, ...] = ()
    held: Mapping[str, HeldFacts] = field(default_factory=dict)
    places: tuple[SurveyedPlace, ...] = ()
    copies: Mapping[str, tuple[DigestCopy, ...]] = field(default_factory=dict)
    recorded: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    proxy_hosts: Mapping[str, str] = field(default_factory=dict)
    unseen: tuple[Unseen, ...] = ()

    def job_of(self, mark: Mark) -> Job | None:
        """The job that a name tells; None if this controller has none, or several."""
        found = [job for job in self.jobs if job_mark(job.id) == mark.job]
        return found[0] if len(found) == 1 else None

    def vm_of(self, mark: Mark) -> HostVm | None:
        """The VM that a name tells; one that runs comes before a definition that was left behind."""
        found = [item for item in self.vms if vm_mark(item.traces.uuid) == mark.vm]
        return max(found, key=lambda item: item.traces.active, default=None)

    @property
    def baselines(self) -> frozenset[str]:
        """Checkpoints from which the next run of some replica starts, whoever keeps that replica."""
        newest = [item.replica.newest for place in self.places for item in place.replicas if item.replica]
        return frozenset(point.baseline.checkpoint for point in newest if point and point.baseline)


def plan_sweep(facts: Facts, scope: Scope) -> tuple[Leftover, ...]:
    """What was left, in the order in which it is to be dealt with."""
    found = (
        *_frozen_guests(facts), *_snapshots(facts), *_checkpoints(facts), *_files(facts), *_held(facts),
        # Who reads a snapshot may keep it from being merged, so it comes after what is held.
        *_named_snapshots(facts), *_replicas(facts), *_digest_copies(facts),
        *(Leftover(Kind.UNSEEN if item.failed else Kind.NO_PROXY, item.place, "", "", None, Action.SKIP, item.why)
          for item in facts.unseen),
    )  # fmt: skip
    return tuple(item for item in found if _covers(scope, facts, item))


def _covers(scope: Scope, facts: Facts, item: Leftover) -> bool:
    if scope.jobs and item.job not in scope.jobs:
        return False
    host = item.place
    if item.kind in (Kind.EXPORT, Kind.TRANSFER, Kind.DIGESTS):
        host = facts.proxy_hosts.get(item.place, "")
    elif item.kind in (Kind.MERGE, Kind.REPLICA_FILE):
        host = next(place.datastore.host for place in facts.places if place.datastore.name == item.place)
    return not scope.hosts or host in scope.hosts


def _judged(facts: Facts, mark: Mark, host: str, vm: str) -> tuple[Action, str] | None:
    """Why a thing of that mark is left alone, or None if it may be dealt with."""
    job = facts.job_of(mark)
    if job is None:
        return Action.NOT_OURS, "job unknown: deleted here, or of another controller; remove it only if you are sure"
    return _busy(facts, job, host, vm)


def _busy(facts: Facts, job: Job, host: str, vm: str) -> tuple[Action, str] | None:
    if job.id in facts.busy:
        return Action.SKIP, f"session {facts.busy[job.id]} of job {job.name!r} is not over"
    if (host, vm) in facts.busy_vms:
        return Action.SKIP, f"a session works on VM {vm!r}"
    return None


def _of_vm(facts: Facts, item: HostVm, kind: Kind, name: str, proposed: tuple[Action, str]) -> Leftover | None:
    """A thing of ours on a VM: ``proposed`` unless its name tells that it must be left alone."""
    mark, traces = Mark.of(PurePosixPath(name).name), item.traces
    if mark is None:
        return None
    if mark.vm != vm_mark(traces.uuid):
        verdict: tuple[Action, str] = (Action.NOT_OURS, "its name is of another VM; remove it only if you are sure")
    else:
        verdict = _judged(facts, mark, item.host, traces.name) or proposed
    commands = () if verdict[0] is Action.SKIP else tuple(traces.by_hand.get(name, ()))
    return Leftover(kind, item.host, traces.name, name, mark.session, *verdict, _job_id(facts, mark), commands)


def _job_id(facts: Facts, mark: Mark) -> str:
    job = facts.job_of(mark)
    return job.id if job else ""


def _frozen_guests(facts: Facts) -> Iterator[Leftover]:
    for guest in facts.frozen:
        vm = next((item for item in facts.vms if item.traces.uuid == guest.vm_uuid), None)
        verdict = (Action.THAW, "its session is dead")
        if guest.session in facts.busy.values():
            verdict = (Action.SKIP, f"session {guest.session} is not over")
        commands = vm.traces.by_hand.get("thaw", ()) if vm else ()
        yield Leftover(Kind.FROZEN_GUEST, guest.host, vm.traces.name if vm else "", guest.vm_uuid, guest.session,
                       *verdict, commands=tuple(commands))  # fmt: skip


def _snapshots(facts: Facts) -> Iterator[Leftover]:
    for item in facts.vms:
        found = []
        if item.traces.backup:
            found.append(_of_vm(facts, item, Kind.BACKUP_JOB, item.traces.backup, (Action.END, "its session is dead")))
        proposed = (Action.COMMIT, "its session is dead; the next run reads the whole disks, for once")
        if not item.traces.active:
            proposed = (Action.KEEP, "the VM is off and this file holds its newest changes: start it, then sweep again")
        found += [_of_vm(facts, item, Kind.DELTA, path, proposed) for _, path in item.traces.deltas]
        yield from filter(None, found)


def _named_snapshots(facts: Facts) -> Iterator[Leftover]:
    for item in facts.vms:
        for name in item.traces.snapshots:
            leftover = _of_vm(facts, item, Kind.SNAPSHOT, name, (Action.COMMIT, "its session is dead"))
            yield from [leftover] if leftover else []
        yield from _unmerged(facts, item)


def _unmerged(facts: Facts, item: HostVm) -> Iterator[Leftover]:
    """Deltas that no snapshot needs, of a VM that a job replicates: they may be of a snapshot of ours that is gone."""
    traces = item.traces
    replicated = {job for job, uuid in facts.recorded.values() if uuid == traces.uuid}
    jobs = [job for job in facts.jobs
            if job.id in replicated or (item.host in job.sources and traces.name in job.vms)]  # fmt: skip
    if not traces.unmerged or not jobs:
        return
    busy = [found for job in jobs if (found := _busy(facts, job, item.host, traces.name))]
    verdict = busy[0] if busy else (Action.COMMIT, "no snapshot needs it: one was removed, and not merged")
    commands = () if busy else tuple(traces.by_hand.get("merge", ()))
    yield Leftover(Kind.UNMERGED, item.host, traces.name, "", None, *verdict, jobs[0].id, commands)


def _checkpoints(facts: Facts) -> Iterator[Leftover]:
    baselines = facts.baselines
    for item in facts.vms:
        for name in item.traces.checkpoints:
            if name not in baselines:
                leftover = _of_vm(facts, item, Kind.CHECKPOINT, name, _checkpoint_verdict(facts, item, name))
                yield from [leftover] if leftover else []


def _checkpoint_verdict(facts: Facts, item: HostVm, name: str) -> tuple[Action, str]:
    mark = Mark.of(name)
    job = facts.job_of(mark) if mark else None
    unread = _unread_record(facts, job, item.traces.uuid) if job else ""
    if unread:
        return Action.KEEP, f"which one the next run needs is not known: {unread}"
    if not item.traces.active:
        return Action.KEEP, "the VM is off; libvirt can remove it only while the VM runs"
    return Action.REMOVE, "the newest restore point does not start from it"


def _unread_record(facts: Facts, job: Job, vm_uuid: str) -> str:
    """Why the record of the job's replica of a VM was not read; empty if it was, or if there surely is no replica."""
    place = next((place for place in facts.places if place.datastore.name == job.datastore), None)
    if place is None or place.survey is None or not place.survey.exists:
        problem = place.problem if place else ""
        return f"datastore {job.datastore!r} {problem or 'is not there'}"
    identities = [item.replica.identity for item in place.replicas if item.replica]
    if any((known.job_id, known.source_uuid) == (job.id, vm_uuid) for known in identities):
        return ""
    broken = [item for item in place.replicas if item.replica is None]
    if broken:
        return broken[0].problem
    if (job.id, vm_uuid) in facts.recorded.values():
        return f"its replica is not in datastore {job.datastore!r}"
    return ""


def _files(facts: Facts) -> Iterator[Leftover]:
    active = {path for item in facts.vms for _, path in item.traces.deltas}
    for found in facts.files:
        path, mark = str(PurePosixPath(found.file.directory) / found.file.name), Mark.of(found.file.name)
        if mark is None or path in active:
            continue  # no name of ours; or told with its VM already
        vm = facts.vm_of(mark)
        host = vm.host if vm and vm.host in found.hosts else found.hosts[0]
        judged = _judged(facts, mark, vm.host if vm else "", vm.traces.name if vm else "")
        verdict = judged or _file_verdict(found.file, vm, facts)
        commands = () if verdict[0] in (Action.SKIP, Action.KEEP) else (shlex.join(["rm", "--", path]),)
        yield Leftover(Kind.FILE, host, found.file.directory, found.file.name, mark.session, *verdict,
                       _job_id(facts, mark), commands)  # fmt: skip


def _file_verdict(file: TaggedFile, vm: HostVm | None, facts: Facts) -> tuple[Action, str]:
    if not file.name.endswith(".delta"):
        return Action.REMOVE, "its session is dead"
    if file.in_use:
        return Action.KEEP, "a disk needs it, below a snapshot that is not ours: commit that one first"
    if vm is None or not vm.traces.active or any(item.failed for item in facts.unseen):
        return Action.KEEP, "it may hold the newest changes: its VM was not seen running, or a host was not seen"
    return Action.REMOVE, "it was merged: no disk uses it"


def _held(facts: Facts) -> Iterator[Leftover]:
    replicas = {item.replica.identity.id: item.replica.identity
                for place in facts.places for item in place.replicas if item.replica}  # fmt: skip
    jobs = {job.id: job for job in facts.jobs}
    for proxy, held in facts.held.items():
        for tag in held.exports:
            mark = Mark.of(tag)
            if mark is not None:
                vm = facts.vm_of(mark)
                judged = _judged(facts, mark, vm.host if vm else "", vm.traces.name if vm else "")
                verdict = judged or (Action.END, "its session is dead")
                yield Leftover(Kind.EXPORT, proxy, "", tag, mark.session, *verdict, _job_id(facts, mark),
                               _RESTART if verdict[0] is Action.END else ())  # fmt: skip
        for replica in held.transfers:
            identity = replicas.get(replica)
            job = jobs.get(identity.job_id) if identity else None
            if identity and job:
                verdict = _busy(facts, job, job.source, identity.source_vm) or (Action.END, "its session is dead")
                yield Leftover(Kind.TRANSFER, proxy, identity.name, replica, None, *verdict, job.id,
                               _RESTART if verdict[0] is Action.END else ())  # fmt: skip


def _replicas(facts: Facts) -> Iterator[Leftover]:
    for place in facts.places:
        for item in place.replicas:
            if item.replica is None:
                yield Leftover(Kind.UNSEEN, place.datastore.name, item.name, "", None, Action.SKIP, item.problem)
            else:
                yield from _in_replica(facts, place.datastore, item)


def _in_replica(facts: Facts, datastore: Datastore, item: SurveyedReplica) -> Iterator[Leftover]:
    assert item.replica is not None
    identity, left = item.replica.identity, item.leftovers
    job = next((job for job in facts.jobs if job.id == identity.job_id), None)
    verdict = _busy(facts, job, job.source, identity.source_vm) if job else None
    if job is None and identity.id not in facts.recorded:
        verdict = (Action.NOT_OURS, f"this controller does not know the replica, nor its job {identity.job_name!r}; "
                   f"'understudy replica adopt {datastore.name}/{item.name}' takes it over")  # fmt: skip

    def told(kind: Kind, name: str, proposed: tuple[Action, str], *words: str) -> Leftover:
        commands = () if verdict or not proposed[0].acts else (shlex.join(words),)
        return Leftover(kind, datastore.name, item.name, name, None, *(verdict or proposed), job.id if job else "",
                        commands)  # fmt: skip

    for disk in left.merging:
        again = ("understudy", "job", "run", identity.job_name)
        yield told(Kind.MERGE, disk, (Action.FINISH, "retention was interrupted; every point is readable"), *again)
    for name in left.unneeded:
        yield told(Kind.REPLICA_FILE, name, (Action.REMOVE, "no restore point needs it"), "rm", "--", name)
    continued = (Action.REMOVE, "its job is gone, nobody continues it")
    if job:
        continued = (Action.KEEP, f"continued by the next session of job {job.name!r}")
    for name in left.continued:
        yield told(Kind.REPLICA_FILE, name, continued, "rm", "--", name)


def _digest_copies(facts: Facts) -> Iterator[Leftover]:
    replicas = {item.replica.identity.id: item.replica for place in facts.places for item in place.replicas
                if item.replica}  # fmt: skip
    complete = all(place.complete for place in facts.places)
    for proxy, copies in facts.copies.items():
        for copy in copies:
            replica = replicas.get(copy.replica_id)
            if replica and copy.point in {point.id for point in replica.points}:
                continue
            job = next((job for job in facts.jobs if replica and job.id == replica.identity.job_id), None)
            verdict = _busy(facts, job, job.source, replica.identity.source_vm) if job and replica else None
            if replica is None and (not complete or copy.replica_id in facts.recorded):
                verdict = (Action.KEEP, "its replica was not found, or could not be read")
            proposed = (Action.REMOVE, "the replica has no such restore point" if replica else "no such replica")
            commands = (shlex.join(["rm", "--", copy.path]),) if verdict is None else ()
            yield Leftover(Kind.DIGESTS, proxy, copy.replica_id, copy.point, None, *(verdict or proposed),
                           job.id if job else "", commands)  # fmt: skip
