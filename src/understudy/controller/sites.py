"""Building the two ends of a task: connections and proxies of this controller, opened on demand and shared by tasks."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath

from understudy.context import Context
from understudy.controller import catalog, throttles
from understudy.controller.choice import best_route, host_proxies, possible_routes, target_proxies
from understudy.controller.credentials import guest_login, host_access, ssh_access
from understudy.controller.database import Database
from understudy.controller.datastores import proved_datastore
from understudy.controller.ledger import Claim, Kind, Resource
from understudy.controller.movers import MoverPool
from understudy.controller.rates import RatePusher
from understudy.controller.resources import ResourcePool
from understudy.controller.task_journal import DatabaseJournal
from understudy.controller.whereabouts import Whereabouts, locate_vm
from understudy.errors import UnderstudyError, UsageError
from understudy.guests.freezing import Watchdog
from understudy.guests.ssh import SshAccess
from understudy.model.access import DiskLibrary, HostAccess
from understudy.model.guest_operations import GuestLogin
from understudy.model.inventory import Disk, Vm
from understudy.model.job import Host, Job, Proxy, ProxyKind
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms import CommitPatience, Platform, SourcePlatform, open_platform
from understudy.replication.held import HeldTask
from understudy.replication.site import Guests, Lease, Place

LOG = logging.getLogger(__name__)
_REMEMBER_S = 10.0
_LONGEST_PAUSE_S = 86400.0
COMMIT_PAUSES = "UNDERSTUDY_COMMIT_PAUSES"


def commit_patience(environment: Mapping[str, str]) -> CommitPatience:
    """How long merges of snapshot deltas are tried: ``UNDERSTUDY_COMMIT_PAUSES`` has seconds, separated by commas.

    :raises UsageError: if it has something else.
    """
    text = environment.get(COMMIT_PAUSES, "")
    try:
        pauses = tuple(float(part) for part in text.split(",")) if text else CommitPatience().pauses
    except ValueError as exc:
        raise UsageError(f"{COMMIT_PAUSES}={text!r}", "not a list of seconds", "give e.g. 5,15,45,135") from exc
    if not all(0 <= pause <= _LONGEST_PAUSE_S for pause in pauses):
        raise UsageError(f"{COMMIT_PAUSES}={text!r}", f"a pause is not between 0 and {_LONGEST_PAUSE_S:.0f} s")
    return CommitPatience(pauses)


class PlatformPool:
    """One connection for each way to reach a host; hosts of several names may share one."""

    def __init__(self, access: Callable[[Host], HostAccess], patience: CommitPatience | None = None) -> None:
        """:param access: how a host is reached.

        :param patience: with merges of snapshot deltas.
        """
        self._access = access
        self._patience = patience
        self._open: dict[HostAccess, Platform] = {}
        self._lock = threading.Lock()

    def get(self, host: Host) -> Platform:
        """The platform of a host.

        :raises HostUnreachable: if it does not answer.
        """
        access = self._access(host)
        with self._lock:
            if access not in self._open:
                self._open[access] = open_platform(access, self._patience)
            return self._open[access]

    def close(self) -> None:
        """Give all connections back; one that cannot be closed does not keep the others open."""
        with self._lock:
            for access, platform in self._open.items():
                try:
                    platform.close()
                except UnderstudyError as exc:
                    LOG.warning("connection to %s: %s", access.uri, exc)
            self._open.clear()


class Reachability:
    """Which proxies answer; each is asked at most every few seconds, however many tasks want to know."""

    def __init__(self, mover: Callable[[str], MoverClient]) -> None:
        self._mover = mover
        self._known: dict[str, tuple[float, str]] = {}
        self._libraries: dict[tuple[str, DiskLibrary], tuple[float, str]] = {}

    def problem(self, name: str) -> str:
        """Why a proxy does not answer; empty if it does."""
        asked_at, problem = self._known.get(name, (0.0, ""))
        if name not in self._known or time.monotonic() - asked_at > _REMEMBER_S:
            problem = self._ask(name)
            self._known[name] = (time.monotonic(), problem)
        return problem

    def library_problem(self, name: str, library: DiskLibrary) -> str:
        """Why a proxy cannot use a disk library; empty if it can."""
        asked_at, problem = self._libraries.get((name, library), (0.0, ""))
        if (name, library) not in self._libraries or time.monotonic() - asked_at > _REMEMBER_S:
            problem = self._ask_library(name, library)
            self._libraries[name, library] = (time.monotonic(), problem)
        return problem

    def _ask(self, name: str) -> str:
        try:
            self._mover(name).call(api.About(), api.MoverInfo)
        except UnderstudyError as exc:
            return str(exc)
        return ""

    def _ask_library(self, name: str, library: DiskLibrary) -> str:
        try:
            return self._mover(name).call(api.ProbeLibrary(library), api.LibraryFacts).problem
        except UnderstudyError as exc:
            return str(exc)


class SiteBuilder:
    """Makes sites for the tasks of one controller."""

    def __init__(self, home: Path, database: Database) -> None:
        self._database = database
        self.platforms = PlatformPool(functools.partial(host_access, database), commit_patience(os.environ))
        self.movers = MoverPool(home, database)
        self._pool = ResourcePool()
        self.rates = RatePusher(lambda: throttles.list_throttles(database), self.movers.get)
        self._reach = Reachability(self._mover)

    def warm_up(self, job: Job) -> None:
        """Start the child processes that a job is likely to use: they get ready while its tasks are prepared."""
        source, target = catalog.get_host(self._database, job.source), catalog.get_host(self._database, job.target)
        proxies = catalog.list_proxies(self._database)
        route = best_route(possible_routes(job, source, target, proxies, lambda _: True), lambda _: 0.0)
        for proxy in proxies:
            if proxy.kind is ProxyKind.CHILD and proxy.name in (route.source, route.target):
                self.movers.start(proxy.name)

    def locate(self, job: Job, vm: str, uuid: str) -> Whereabouts:
        """Where a VM of ``job`` is now; see :func:`understudy.controller.whereabouts.locate_vm`."""
        return locate_vm(job, vm, uuid, lambda host: self.platforms.get(catalog.get_host(self._database, host)))

    def source_of(self, job: Job) -> SourcePlatform:
        """The platform of the job's source host.

        :raises HostUnreachable: if it does not answer.
        """
        return self.platforms.get(catalog.get_host(self._database, job.source))

    def guests_of(self, job: Job) -> Guests:
        """Who starts watchdogs for guests of the job's source host, and knows who may log in to them."""
        return _HostGuests(self._database, catalog.get_host(self._database, job.source))

    def build(self, job: Job, journal: DatabaseJournal) -> Place:
        """The two ends of a task of ``job``; it gets its proxies when it reserves them.

        :raises HostUnreachable: if a platform does not answer.
        """
        source_host = catalog.get_host(self._database, job.source)
        target_host = catalog.get_host(self._database, job.target)
        return Place(
            source_host=source_host,
            target_host=target_host,
            datastore=catalog.get_datastore(self._database, job.datastore),
            source=self.platforms.get(source_host),
            target=self.platforms.get(target_host),
            journal=journal,
            resources=TaskResources(self._database, self._pool, self.movers, self._reach, self.rates, journal),
            guests=_HostGuests(self._database, source_host),
        )

    def is_held(self, held: HeldTask) -> bool:
        """Whether the proxies outlived the controller that began a task, and have what it holds."""
        try:
            if catalog.get_proxy(self._database, held.target_proxy).kind is not ProxyKind.SERVICE:
                return False  # it ended with the controller
            query = api.DraftQuery(held.draft)
            return self.movers.get(held.target_proxy).call(query, api.DraftHolding).held
        except UnderstudyError as exc:
            LOG.warning("restore point %s cannot be gone on with: %s", held.spec.point, exc)
            return False

    def proxy_on(self, host: Host) -> Proxy | None:
        """A proxy that sees the files of a host: None if it has none, else the first that answers.

        :raises MoverError: if none does.
        """
        proxies = catalog.list_proxies(self._database)
        children = child_names(proxies)
        found = host_proxies(host, proxies, lambda name: name in children or not self._reach.problem(name))
        return found[0] if found else None

    def alone(self, host: str, vm: str) -> AbstractContextManager[bool]:
        """Inside the context no task works on a VM; False if one does, or is about to."""
        return self._pool.alone(_vm_key(host, vm))

    def mover_at(self, host: str, wanted: str = "") -> MoverClient:
        """A proxy that can write to the datastores of a host: the wanted one, or else the first that answers.

        :raises MoverError: if none does.
        """
        if wanted:
            return self.movers.get(wanted)
        target, proxies = catalog.get_host(self._database, host), catalog.list_proxies(self._database)
        children = child_names(proxies)
        answering = target_proxies(
            target, proxies, lambda name: name in children or not self._reach.problem(name)
        )
        return self.movers.get(answering[0].name)

    def _mover(self, name: str) -> MoverClient:
        return self.movers.get(name)

    def close(self) -> None:
        """End all proxies and connections."""
        self.rates.close()
        self.movers.close()
        self.platforms.close()


def _vm_key(host: str, vm: str) -> str:
    return f"{host}/{vm}"


def child_names(proxies: Sequence[Proxy]) -> frozenset[str]:
    """The proxies that start when they are needed: to ask whether they answer would start them all."""
    return frozenset(proxy.name for proxy in proxies if proxy.kind is ProxyKind.CHILD)


class TaskResources:
    """The resources of the controller as one task sees them; implements :class:`replication.site.Resources`."""

    def __init__(
        self, database: Database, pool: ResourcePool, movers: MoverPool, reach: Reachability, rates: RatePusher,
        journal: DatabaseJournal,
    ) -> None:
        self._database = database
        self._pool = pool
        self._movers = movers
        self._reach = reach
        self._rates = rates
        self._journal = journal

    def sending(self, source: Proxy, target: Proxy) -> AbstractContextManager[tuple[str, ...]]:
        """Inside the context a disk is sent; the source proxy knows its limits."""
        return self._rates.running(source.name, target.name)

    def restarted(self, source: Proxy) -> None:
        """Tell the proxy its limits again."""
        self._rates.forget(source.name)
        self._rates.push()

    @contextmanager
    def reserve(self, ctx: Context, job: Job, vm: Vm, disks: Sequence[Disk]) -> Iterator[Lease]:
        """Wait until all that the task needs is free, and hold it."""

        def claim() -> Claim:
            return self._claim(job, vm, disks)

        with self._pool.reserve(ctx, claim, self._journal.waiting) as slots:
            route = slots.route
            proved_datastore(self._database, self._movers.get(route.target),
                             catalog.get_datastore(self._database, job.datastore))
            yield Lease(
                source_proxy=catalog.get_proxy(self._database, route.source),
                target_proxy=catalog.get_proxy(self._database, route.target),
                source_mover=self._movers.get(route.source),
                target_mover=self._movers.get(route.target),
                transport=route.transport,
                take=slots.take,
                give_back=slots.give_back,
            )

    def _claim(self, job: Job, vm: Vm, disks: Sequence[Disk]) -> Claim:
        """What the task needs, by the configuration of this moment; tells its limits to the pool."""
        source, target = catalog.get_host(self._database, job.source), catalog.get_host(self._database, job.target)
        proxies = catalog.list_proxies(self._database)
        datastore = catalog.get_datastore(self._database, job.datastore)
        places = frozenset(f"{source.name}:{_place(source, disk)}" for disk in disks)
        self._pool.offer({
            **{Resource(Kind.SLOT, proxy.name): proxy.slots for proxy in proxies},
            **{Resource(Kind.SNAPSHOT, place): source.max_snapshots for place in places},
            Resource(Kind.TRANSFER, datastore.name): datastore.max_transfers,
        })
        children = child_names(proxies)
        routes = possible_routes(
            job, source, target, proxies, lambda name: name in children or self._answers(name),
            lambda name: self._reach.library_problem(name, source.library),
        )
        return Claim(_vm_key(job.source, vm.name), places, datastore.name, routes)

    def _answers(self, name: str) -> bool:
        problem = self._reach.problem(name)
        if problem:
            self._journal.warn(f"proxy {name!r} is not used: {problem}")
        return not problem


def _place(host: Host, disk: Disk) -> str:
    """The datastore of a disk on the source, as far as its path tells."""
    if host.by_library:
        return disk.path.partition("]")[0] + "]"
    # A block device lies in the directory of its volume group or pool.
    return str(PurePosixPath(disk.path).parent)


class _HostGuests:
    """Starts thaw watchdogs for guests of one host, and finds who may log in to them."""

    def __init__(self, database: Database, host: Host) -> None:
        self._database = database
        self._host = host

    def watchdog(self, vm_uuid: str) -> Watchdog:
        return Watchdog(self._host.uri, vm_uuid)

    def access(self, job: Job, vm: Vm) -> SshAccess | None:
        return ssh_access(self._database, job, vm)

    def login(self, job: Job, vm: Vm) -> GuestLogin | None:
        return guest_login(self._database, job, vm) if self._host.by_library else None
