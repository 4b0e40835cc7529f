"""Building the two ends of a task: connections and proxies of this controller, opened on demand and shared by tasks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from understudy.context import Context
from understudy.controller import catalog
from understudy.controller.database import Database
from understudy.controller.movers import MoverPool
from understudy.controller.resources import Claim, ResourcePool
from understudy.controller.task_journal import DatabaseJournal
from understudy.errors import UnderstudyError
from understudy.guests.processing import Watchdog
from understudy.model.job import Host, Job, Proxy
from understudy.platforms import Platform, open_platform
from understudy.replication.site import Lease, Site

LOG = logging.getLogger(__name__)


class PlatformPool:
    """One connection per host URI."""

    def __init__(self) -> None:
        self._open: dict[str, Platform] = {}
        self._lock = threading.Lock()

    def get(self, uri: str) -> Platform:
        """The platform at ``uri``.

        :raises HostUnreachable: if it does not answer.
        """
        with self._lock:
            if uri not in self._open:
                self._open[uri] = open_platform(uri)
            return self._open[uri]

    def close(self) -> None:
        """Give all connections back; one that cannot be closed does not keep the others open."""
        with self._lock:
            for uri, platform in self._open.items():
                try:
                    platform.close()
                except UnderstudyError as exc:
                    LOG.warning("connection to %s: %s", uri, exc)
            self._open.clear()


def choose_proxy(wanted: str, host: str, proxies: Mapping[str, Proxy]) -> str:
    """The proxy for disks of ``host``: the wanted one, else one on that host, else the built-in one. Pure."""
    if wanted:
        return wanted
    return next((name for name, proxy in sorted(proxies.items()) if proxy.host == host), catalog.LOCAL_PROXY)


class SiteBuilder:
    """Makes sites for the tasks of one controller."""

    def __init__(self, home: Path, database: Database) -> None:
        self._database = database
        self.platforms = PlatformPool()
        self.movers = MoverPool(home, database)
        self._resources = ResourcePool({})

    def proxies_of(self, job: Job) -> tuple[str, str]:
        """Names of the source and the target proxy of a job."""
        # Read anew: a proxy may have been added since this controller began.
        proxies = {proxy.name: proxy for proxy in catalog.list_proxies(self._database)}
        self._resources.offer({name: proxy.slots for name, proxy in proxies.items()})
        return (
            choose_proxy(job.source_proxy, job.source, proxies),
            choose_proxy(job.target_proxy, job.target, proxies),
        )

    def warm_up(self, job: Job) -> None:
        """Start the proxies of a job, so that they get ready while its tasks are prepared."""
        for name in self.proxies_of(job):
            self.movers.start(name)

    def build(self, job: Job, journal: DatabaseJournal) -> Site:
        """The two ends of a task of ``job``.

        :raises HostUnreachable: if a platform does not answer.
        """
        source_host = catalog.get_host(self._database, job.source)
        target_host = catalog.get_host(self._database, job.target)
        source_proxy, target_proxy = self.proxies_of(job)
        return Site(
            source_host=source_host,
            target_host=target_host,
            datastore=catalog.get_datastore(self._database, job.datastore),
            source=self.platforms.get(source_host.uri),
            target=self.platforms.get(target_host.uri),
            source_mover=self.movers.get(source_proxy),
            target_mover=self.movers.get(target_proxy),
            same_mover=source_proxy == target_proxy,
            journal=journal,
            resources=_TaskResources(self._resources, frozenset({source_proxy, target_proxy}), journal),
            guests=_HostGuests(source_host),
        )

    def close(self) -> None:
        """End all proxies and connections."""
        self.movers.close()
        self.platforms.close()


class _TaskResources:
    """The resource pool as one task sees it."""

    def __init__(self, pool: ResourcePool, proxies: frozenset[str], journal: DatabaseJournal) -> None:
        self._pool = pool
        self._proxies = proxies
        self._journal = journal

    @contextmanager
    def reserve(self, ctx: Context, job: Job, vm: str, disks: int) -> Iterator[Lease]:
        claim = Claim(self._proxies, f"{job.source}/{vm}", disks)
        with self._pool.reserve(ctx, claim, self._journal.waiting) as lease:
            yield lease


class _HostGuests:
    """Starts thaw watchdogs for guests of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def watchdog(self, vm_uuid: str) -> Watchdog:
        return Watchdog(self._host.uri, vm_uuid)

