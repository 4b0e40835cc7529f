"""Looking at all hosts, datastores and proxies for what dead sessions left; nothing is changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import TypeVar

from understudy.controller import catalog, interrupted
from understudy.controller.database import Database
from understudy.controller.frozen import list_frozen
from understudy.controller.jobs import list_jobs
from understudy.controller.leftovers import Scope
from understudy.controller.records import RunningSession
from understudy.controller.replicas import list_replicas
from understudy.controller.sites import SiteBuilder
from understudy.controller.sweep_plan import Facts, HostFile, HostVm, SurveyedPlace, Unseen
from understudy.errors import UnderstudyError
from understudy.model.job import Datastore, Host, Job, Proxy, ProxyKind
from understudy.model.snapshot import TAGGED
from understudy.mover import api
from understudy.platforms import VmTraces

T = TypeVar("T")


class Looking:
    """One look at everything; what cannot be seen is noted and hides nothing else.

    :param scope: a few jobs alone are looked for only on their own hosts and datastores.
    """

    def __init__(self, database: Database, sites: SiteBuilder, scope: Scope) -> None:
        self._database = database
        self._sites = sites
        self._scope = scope
        self._unseen: list[Unseen] = []
        self._jobs = list_jobs(database)
        self._concerned = [job for job in self._jobs if job.id in scope.jobs] if scope.jobs else list(self._jobs)

    def facts(self, busy: Mapping[str, int], busy_vms: Iterable[tuple[str, str]]) -> Facts:
        """All that was found.

        :param busy: see :class:`Facts`.
        :param busy_vms: ``(host, VM)`` besides those of the jobs that are busy.
        """
        proxies = catalog.list_proxies(self._database)
        hosts = self._hosts()
        vms = self._vms(hosts)
        works = {*busy_vms, *_vms_of(self._jobs, interrupted.running_sessions(self._database), busy)}
        # Jobs may call the host by another name.
        uris = {host.name: host.uri for host in catalog.list_hosts(self._database)}
        shown = {host.uri: host.name for host in hosts}
        few = bool(self._scope.jobs)
        return Facts(
            jobs=self._jobs,
            busy=busy,
            busy_vms=frozenset((shown.get(uris.get(host, ""), host), vm) for host, vm in works),
            frozen=() if few else list_frozen(self._database),
            vms=vms,
            files=self._files(hosts, vms),
            held=self._held(proxies),
            places=tuple(self._survey(datastore) for datastore in self._datastores()),
            copies={} if few else self._copies(proxies),
            recorded={item.replica.identity.id: (item.replica.identity.job_id, item.replica.identity.source_uuid)
                      for item in list_replicas(self._database)},
            proxy_hosts={proxy.name: proxy.host for proxy in proxies},
            unseen=tuple(self._unseen),
        )  # fmt: skip

    def _hosts(self) -> list[Host]:
        """The hosts, each of several names of the same one only once: its VMs must not show twice."""
        wanted = {name for job in self._concerned for name in job.sources}
        found: dict[str, Host] = {}
        # A name that was asked for comes before others of the same host.
        for host in sorted(catalog.list_hosts(self._database), key=lambda host: host.name not in self._scope.hosts):
            if not self._scope.jobs or host.name in wanted:
                found.setdefault(host.uri, host)
        return list(found.values())

    def _datastores(self) -> list[Datastore]:
        wanted = {job.datastore for job in self._concerned}
        everything = catalog.list_datastores(self._database)
        return [item for item in everything if not self._scope.jobs or item.name in wanted]

    def _vms(self, hosts: Iterable[Host]) -> tuple[HostVm, ...]:
        found = []
        for host in hosts:
            traces = self._seen(host.name, partial(self._traces, host))
            found += [HostVm(host.name, item) for item in traces or ()]
        return tuple(found)

    def _files(self, hosts: Iterable[Host], vms: Iterable[HostVm]) -> tuple[HostFile, ...]:
        """Files of ours in the scratch directories and beside the images, where a proxy sees them."""
        images = tuple(sorted({image for vm in vms for image in vm.traces.images}))
        seen_by: dict[str, list[Host]] = defaultdict(list)
        for host in hosts:
            if self._scope.hosts and host.name not in self._scope.hosts:
                continue
            answer = self._seen(host.name, partial(self._proxies_on, host))
            if answer:
                seen_by[answer[0].name].append(host)
            elif answer is not None:
                why = "no proxy is on this host: its scratch files and free snapshot deltas were not looked for"
                self._unseen.append(Unseen(host.name, why, failed=False))
        found = []
        for proxy_name, group in seen_by.items():
            names = tuple(host.name for host in group)
            request = api.ListTagged(tuple(sorted(_directories(group, vms))), TAGGED, images)
            listed = self._seen(names[0], partial(self._ask, proxy_name, request, api.TaggedFiles))
            found += [HostFile(names, file) for file in listed.files] if listed else []
        return tuple(found)

    def _held(self, proxies: Iterable[Proxy]) -> dict[str, api.HeldFacts]:
        """What services still run; a child proxy has outlived nobody."""
        found = {}
        for proxy in [proxy for proxy in proxies if proxy.kind is ProxyKind.SERVICE]:
            held = self._seen(proxy.name, partial(self._ask, proxy.name, api.HeldQuery(), api.HeldFacts))
            if held:
                found[proxy.name] = held
        return found

    def _copies(self, proxies: Iterable[Proxy]) -> dict[str, tuple[api.DigestCopy, ...]]:
        found = {}
        for proxy in proxies:
            answer = self._seen(proxy.name, partial(self._ask, proxy.name, api.ListCopies(), api.DigestCopyList))
            if answer:
                found[proxy.name] = answer.copies
        return found

    def _survey(self, datastore: Datastore) -> SurveyedPlace:
        request = api.SurveyDatastore(datastore.kind, datastore.path)
        try:
            survey = self._sites.mover_at(datastore.host).call(request, api.DatastoreSurvey)
        except UnderstudyError as exc:
            self._unseen.append(Unseen(datastore.name, str(exc), failed=True))
            return SurveyedPlace(datastore, None, str(exc))
        if not survey.exists:
            why = f"directory {datastore.path} does not exist; mount it"
            self._unseen.append(Unseen(datastore.name, why, failed=True))
            return SurveyedPlace(datastore, survey, why)
        return SurveyedPlace(datastore, survey)

    def _traces(self, host: Host) -> tuple[VmTraces, ...]:
        return self._sites.platforms.get(host).traces()

    def _proxies_on(self, host: Host) -> list[Proxy]:
        proxy = self._sites.proxy_on(host)
        return [proxy] if proxy else []

    def _ask(self, proxy: str, request: object, response_type: type[T]) -> T:
        return self._sites.movers.get(proxy).call(request, response_type)

    def _seen(self, place: str, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except UnderstudyError as exc:
            if all((item.place, item.why) != (place, str(exc)) for item in self._unseen):
                self._unseen.append(Unseen(place, str(exc), failed=True))
            return None


def _directories(hosts: Iterable[Host], vms: Iterable[HostVm]) -> set[str]:
    names = {host.name for host in hosts}
    beside = {PurePosixPath(path).parent for vm in vms if vm.host in names for path, _ in vm.traces.images}
    # The delta of a block device is in the scratch directory; /dev itself holds no files of ours.
    return {str(path) for path in beside if not path.is_relative_to("/dev")} | {host.scratch_dir for host in hosts}


def _vms_of(
    jobs: Iterable[Job], sessions: Iterable[RunningSession], busy: Mapping[str, int]
) -> frozenset[tuple[str, str]]:
    """The VMs on which sessions of busy jobs work, on every host where they may be."""
    hosts = {job.id: job.sources for job in jobs if job.id in busy}
    return frozenset((host, vm) for item in sessions for host in hosts.get(item.job_id, ()) for vm in item.vms)
