"""Sweeping: what dead sessions left is looked for everywhere, and removed as far as S7 allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import PurePosixPath

from understudy.context import Context
from understudy.controller import catalog, interrupted, lock
from understudy.controller.database import Database
from understudy.controller.frozen import clear_frozen
from understudy.controller.jobs import list_jobs
from understudy.controller.leftovers import Kind, Leftover, Scope, Swept
from understudy.controller.records import RunningSession
from understudy.controller.recovery import resumable_sessions
from understudy.controller.sites import SiteBuilder
from understudy.controller.sweep_facts import Looking
from understudy.controller.sweep_plan import Facts, HostVm, plan_sweep
from understudy.errors import HostUnreachable, MoverError, Refused, UnderstudyError
from understudy.model.inventory import Vm
from understudy.model.snapshot import TAGGED, Mark, Tag, job_mark
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms import Platform
from understudy.replication.work import finish

LOG = logging.getLogger(__name__)
_THAW_TIMEOUT_S = 5.0
_STILL_BACKED_UP = "the backup job of its VM could not be ended"


def list_leftovers(database: Database, sites: SiteBuilder, hosts: Sequence[str]) -> tuple[Swept, ...]:
    """What a sweep would find, and do; nothing is changed.

    :param hosts: names of the hosts to look at; empty for all.
    :raises NotFound: if a host is unknown.
    """
    running = interrupted.running_sessions(database)
    if lock.holder(database.home) is None:
        kept = {session.id for session in resumable_sessions(database, sites.is_held)}
        running = tuple(item for item in running if item.id in kept)
    _, plan = _planned(database, sites, hosts, running)
    return tuple(Swept(item) for item in plan)


def sweep_as_controller(database: Database, sites: SiteBuilder, hosts: Sequence[str]) -> tuple[Swept, ...]:
    """Sweep as the controller, which this process is meanwhile. Sessions that can be gone on with are left alone.

    :param hosts: names of the hosts to sweep; empty for all.
    :raises NotFound: if a host is unknown.
    :raises Refused: if another process is the controller.
    """
    held = lock.try_acquire(database.home)
    if held is None:
        raise Refused("sweep", f"a controller is running (process {lock.holder(database.home)})",
                      "wait until its sessions have ended, or list only: --dry-run")
    with held:
        kept = [session.id for session in resumable_sessions(database, sites.is_held)]
        interrupted.fail_dead_sessions(database, kept)
        facts, plan = _planned(database, sites, hosts, interrupted.running_sessions(database))
        return Sweeping(Context(), database, sites, facts).apply(plan)


def _planned(
    database: Database, sites: SiteBuilder, hosts: Sequence[str], running: Iterable[RunningSession]
) -> tuple[Facts, tuple[Leftover, ...]]:
    scope = Scope(frozenset(catalog.get_host(database, name).name for name in hosts))
    facts = Looking(database, sites, scope).facts({item.job_id: item.id for item in running}, ())
    return facts, plan_sweep(facts, scope)


def sweep_jobs(ctx: Context, database: Database, sites: SiteBuilder, job_ids: Iterable[str]) -> tuple[Swept, ...]:
    """For a controller whose sessions run meanwhile: sweep what was left by sessions of a few jobs that are dead.

    A VM on which a task works is left to that task, and no task begins on a VM while it is swept.
    """
    swept: list[Swept] = []
    for job in [job for job in list_jobs(database) if job.id in set(job_ids)]:
        with ExitStack() as alone:
            taken = {(host, vm): alone.enter_context(sites.alone(host, vm)) for host in job.sources for vm in job.vms}
            ctx.check()
            scope = Scope(jobs=frozenset({job.id}))
            busy = {item.job_id: item.id for item in interrupted.running_sessions(database)}
            facts = Looking(database, sites, scope).facts(busy, (key for key, free in taken.items() if not free))
            swept += Sweeping(ctx, database, sites, facts).apply(plan_sweep(facts, scope))
    return tuple(swept)


class Sweeping:
    """The effects of a plan."""

    def __init__(self, ctx: Context, database: Database, sites: SiteBuilder, facts: Facts) -> None:
        self._ctx = ctx
        self._database = database
        self._sites = sites
        self._facts = facts
        self._still_backed_up: set[tuple[str, str]] = set()

    def apply(self, plan: Iterable[Leftover]) -> tuple[Swept, ...]:
        """Deal with everything in its order; what fails keeps nothing else."""
        acts: dict[Kind, Callable[[Sequence[Leftover]], dict[str, str]]] = {
            Kind.FROZEN_GUEST: self._thaw, Kind.BACKUP_JOB: self._end_snapshots, Kind.DELTA: self._end_snapshots,
            Kind.SNAPSHOT: self._end_snapshots, Kind.UNMERGED: self._end_snapshots,
            Kind.CHECKPOINT: self._remove_checkpoints,
            Kind.FILE: self._remove_files, Kind.EXPORT: self._end_held, Kind.TRANSFER: self._end_held,
            Kind.MERGE: self._sweep_replica, Kind.REPLICA_FILE: self._sweep_replica, Kind.DIGESTS: self._drop_digests,
        }  # fmt: skip
        swept: list[Swept] = []
        for _, group in groupby(plan, key=lambda item: (acts.get(item.kind), item.place, item.owner, item.job)):
            items = list(group)
            todo = [item for item in items if item.action.acts]
            problems = self._done(acts[todo[0].kind], todo) if todo else {}
            # A place that could not be looked at is no success.
            problems |= {item.name: item.why for item in items if item.kind is Kind.UNSEEN}
            swept += [Swept(item, problems.get(item.name, "")) for item in items]
        for item in swept:
            if item.problem:
                LOG.warning("sweep: %s of %s: %s", item.leftover.name, item.leftover.place, item.problem)
            elif item.leftover.action.acts:
                LOG.info("sweep: %s %s of %s", item.leftover.action, item.leftover.name, item.leftover.place)
        return tuple(swept)

    def _done(self, act: Callable[[Sequence[Leftover]], dict[str, str]], todo: Sequence[Leftover]) -> dict[str, str]:
        self._ctx.check()
        try:
            return act(todo)
        except UnderstudyError as exc:
            return {item.name: str(exc) for item in todo}

    # --- source -------------------------------------------------------------------------------------------------------

    def _platform(self, host: str) -> Platform:
        return self._sites.platforms.get(catalog.get_host(self._database, host))

    def _vm(self, item: Leftover) -> tuple[HostVm, Vm, Tag]:
        found = next(vm for vm in self._facts.vms if (vm.host, vm.traces.name) == (item.place, item.owner))
        return found, self._platform(item.place).describe_vm(item.owner), Tag(item.job, found.traces.uuid, 0)

    def _thaw(self, todo: Sequence[Leftover]) -> dict[str, str]:
        for item in todo:
            self._platform(item.place).thaw(item.name, _THAW_TIMEOUT_S)
            clear_frozen(self._database, item.place, item.name)
        return {}

    def _end_snapshots(self, todo: Sequence[Leftover]) -> dict[str, str]:
        """Backup job, deltas and snapshots of one job on one VM; a delta's file goes with it."""
        found, vm, tag = self._vm(todo[0])
        problems = {}
        if any(item.kind is Kind.DELTA for item in todo):
            busy = [disk for disk, _ in found.traces.deltas if disk in found.traces.copied]
            if busy:
                return {item.name: f"another program copies disk {', '.join(busy)} of the VM just now" for item in todo}
            self._distrust_tracking(todo[0].place, vm)
        try:
            done = self._platform(todo[0].place).sweep(self._ctx, vm, tag)
            problems = self._unmerged(todo, vm, done)
        except HostUnreachable:
            raise
        except UnderstudyError as exc:
            problems = {item.name: str(exc) for item in todo if item.kind is not Kind.DELTA or item.name in str(exc)}
            self._still_backed_up |= {(item.place, item.owner) for item in todo if item.kind is Kind.BACKUP_JOB}
        for item in todo:
            if item.kind is Kind.DELTA and item.name not in problems:
                path = PurePosixPath(item.name)
                problems |= self._remove_file(item.place, str(path.parent), path.name, item.name)
        return problems

    def _unmerged(self, todo: Sequence[Leftover], vm: Vm, done: Sequence[str]) -> dict[str, str]:
        """What is not merged although it was tried: for a session that is no error, and only told."""
        if all(item.kind not in (Kind.SNAPSHOT, Kind.UNMERGED) for item in todo):
            return {}
        traces = self._platform(todo[0].place).traces()
        if not any(item.unmerged for item in traces if item.uuid == vm.uuid):
            return {}
        return {item.name: "; ".join(done) or "its delta is not merged" for item in todo}

    def _distrust_tracking(self, host: str, vm: Vm) -> None:
        """Forget every baseline of ours on a VM whose delta is about to be merged, so that the next runs scan.

        If QEMU died while the delta was in use, its part of the dirty maps is lost, and the merge does not tell.
        """
        for job in self._facts.jobs:
            for warning in self._platform(host).keep_baseline(vm, Tag(job.id, vm.uuid, 0), "", ""):
                LOG.warning("sweep: %s", warning)

    def _remove_checkpoints(self, todo: Sequence[Leftover]) -> dict[str, str]:
        if (todo[0].place, todo[0].owner) in self._still_backed_up:
            return {item.name: _STILL_BACKED_UP for item in todo}
        found, vm, tag = self._vm(todo[0])
        kept = [name for name in found.traces.checkpoints
                if name in self._facts.baselines and name.startswith(tag.prefix)]  # fmt: skip
        if len(kept) > 1:
            return {item.name: f"several replicas start from checkpoints of this job: {kept}" for item in todo}
        warnings = self._platform(todo[0].place).keep_baseline(vm, tag, "".join(kept), "")
        failed = [warning for warning in warnings if "could not be removed" in warning]
        return {item.name: text for item in todo for text in failed if item.name in text}

    def _remove_files(self, todo: Sequence[Leftover]) -> dict[str, str]:
        problems = {}
        for item in todo:
            mark = Mark.of(item.name)
            vm = self._facts.vm_of(mark) if mark else None
            if vm and (vm.host, vm.traces.name) in self._still_backed_up:
                problems[item.name] = _STILL_BACKED_UP
            else:
                problems |= self._remove_file(item.place, item.owner, item.name, item.name)
        return problems

    def _remove_file(self, host: str, directory: str, name: str, key: str) -> dict[str, str]:
        proxy = self._sites.proxy_on(catalog.get_host(self._database, host))
        if proxy is None:
            raise MoverError(f"remove {directory}/{name}", f"no proxy is on host {host!r}", "remove it by hand")
        images = tuple(sorted({image for vm in self._facts.vms for image in self._images_of(vm)}))
        mover = self._sites.movers.get(proxy.name)
        mover.call(api.RemoveTagged(directory, name, (), images), api.Removed)
        stays = mover.call(api.ListTagged((directory,), name, images), api.TaggedFiles).files
        return {key: f"{directory}/{name} is still needed by a disk"} if stays else {}

    def _images_of(self, vm: HostVm) -> tuple[tuple[str, str], ...]:
        """The images of a VM now: a delta that was merged a moment ago is none any more."""
        if not vm.traces.deltas:
            return vm.traces.images
        disks = self._platform(vm.host).describe_vm(vm.traces.name).disks
        return tuple((disk.path, disk.image_format) for disk in disks if disk.path)

    # --- proxies and datastores ---------------------------------------------------------------------------------------

    def _end_held(self, todo: Sequence[Leftover]) -> dict[str, str]:
        for item in todo:
            request = api.EndLeftovers("", item.name)
            if item.kind is Kind.TRANSFER:
                request = api.EndLeftovers(item.name, f"{TAGGED}{job_mark(item.job)}-")
            self._sites.movers.get(item.place).call(request, api.Nothing)
        return {}

    def _sweep_replica(self, todo: Sequence[Leftover]) -> dict[str, str]:
        place = next(place for place in self._facts.places if place.datastore.name == todo[0].place)
        known = next(item for item in place.replicas if item.name == todo[0].owner)
        datastore = place.datastore
        mover = self._sites.mover_at(datastore.host)
        owner = api.OwnedReplica(api.ReplicaRef(datastore.kind, datastore.path, known.name),
                                 attempt=known.last_attempt + 1)  # fmt: skip
        finish(self._ctx, mover, api.SweepReplica(owner, keep_continuable=bool(todo[0].job)))
        return self._still_there(mover, owner.ref, todo)

    def _still_there(self, mover: MoverClient, ref: api.ReplicaRef, todo: Sequence[Leftover]) -> dict[str, str]:
        survey = mover.call(api.SurveyDatastore(ref.kind, ref.datastore), api.DatastoreSurvey)
        left = next((item.leftovers for item in survey.replicas if item.name == ref.name), None)
        names = {*left.continued, *left.unneeded, *left.merging} if left else set()
        return {item.name: "it is in use; the next run, or another sweep, tries again" for item in todo
                if item.name in names}  # fmt: skip

    def _drop_digests(self, todo: Sequence[Leftover]) -> dict[str, str]:
        for item in todo:
            self._sites.movers.get(item.place).call(api.DropDigests(item.owner, item.name), api.Removed)
        return {}
