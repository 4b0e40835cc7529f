"""Sites: which proxy serves a host, and connections that are opened once and given back."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from understudy.context import Context
from understudy.controller import catalog, journal, sites
from understudy.controller.database import Database
from understudy.controller.jobs import get_job
from understudy.controller.sites import COMMIT_PAUSES, PlatformPool, SiteBuilder, commit_patience
from understudy.controller.task_journal import DatabaseJournal
from understudy.errors import Cancelled, DatastoreError, HostUnreachable, MoverError, UsageError
from understudy.model.access import HostAccess
from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.job import Host, Job, Proxy, ProxyKind
from understudy.model.transfer import TransportMode
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms import CommitPatience
from understudy.replication.site import Lease, Place
from understudy.storage.values import DatastoreFacts

pytestmark = pytest.mark.timeout(60)

MARKER = "11111111-2222-3333-4444-555555555555"
HOST_A, HOST_B = Host("a", "qemu:///a", "/s"), Host("b", "qemu:///b", "/s")


def pool_of_hosts(patience: CommitPatience | None = None) -> PlatformPool:
    return PlatformPool(lambda host: HostAccess(host.uri), patience)


class Platform:
    """Counts how often it was opened and closed."""

    opened: list[str]
    closed: list[str]

    def __init__(self, access: HostAccess, patience: CommitPatience | None = None) -> None:
        self.uri = access.uri
        self.patience = patience
        Platform.opened.append(access.uri)

    def close(self) -> None:
        Platform.closed.append(self.uri)


@pytest.fixture(autouse=True)
def _platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    Platform.opened, Platform.closed = [], []
    monkeypatch.setattr(sites, "open_platform", Platform)


def test_a_host_is_connected_to_once_until_the_pool_is_closed() -> None:
    pool = pool_of_hosts()
    assert pool.get(HOST_A) is pool.get(replace(HOST_A, name="another"))
    assert pool.get(HOST_B) is not pool.get(HOST_A)
    assert Platform.opened == ["qemu:///a", "qemu:///b"]
    pool.close()
    assert sorted(Platform.closed) == ["qemu:///a", "qemu:///b"]
    pool.get(HOST_A)
    assert Platform.opened[2:] == ["qemu:///a"]


def test_every_host_gets_the_patience_that_the_environment_tells() -> None:
    assert commit_patience({}) == CommitPatience()
    patience = commit_patience({COMMIT_PAUSES: "0.5,2"})
    assert patience.pauses == (0.5, 2.0)
    assert cast("Platform", pool_of_hosts(patience).get(HOST_A)).patience == patience
    for wrong in ("soon", "1,,2", "-1", "nan", "1e9"):
        with pytest.raises(UsageError, match=COMMIT_PAUSES):
            commit_patience({COMMIT_PAUSES: wrong})


def test_a_host_that_does_not_answer_is_asked_again_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([HostUnreachable("host qemu:///a", "no route"), None])

    def open_platform(access: HostAccess, _patience: CommitPatience | None) -> Platform:
        problem = next(answers)
        if problem is not None:
            raise problem
        return Platform(access)

    monkeypatch.setattr(sites, "open_platform", open_platform)
    pool = pool_of_hosts()
    with pytest.raises(HostUnreachable):
        pool.get(HOST_A)
    assert isinstance(pool.get(HOST_A), Platform)


@dataclass
class Mover:
    """A proxy that answers, or does not."""

    name: str
    problem: str = ""
    marks: dict[str, str] = field(default_factory=dict)
    asked: int = 0

    def call(self, request: object, response_type: type) -> object:
        self.asked += isinstance(request, api.About)
        if self.problem:
            raise MoverError(f"proxy {self.name!r}", self.problem)
        if isinstance(request, api.CheckDatastore):
            return api.DatastoreAnswer(DatastoreFacts(request.path, True, True, 1, 1, self.marks.get(request.path, "")))
        if isinstance(request, api.MarkDatastore):
            return api.DatastoreMarker(self.marks.setdefault(request.path, MARKER))
        if isinstance(request, api.ListReplicas):
            return api.ReplicaNames(())
        return api.MoverInfo(self.name, 1, {})


class Movers(dict[str, Mover]):
    """Movers by name, made when they are asked for; they see the same datastores."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[str, str] = {}

    def start(self, name: str) -> None:
        self[name] = Mover(name, marks=self.marks)

    def get(self, name: str) -> MoverClient:  # type: ignore[override]
        return cast("MoverClient", self.setdefault(name, Mover(name, marks=self.marks)))


def builder(database: Database, home: Path) -> SiteBuilder:
    made = SiteBuilder(home, database)
    made.movers.close()
    made.movers = Movers()  # type: ignore[assignment]
    return made


def mover(maker: SiteBuilder, name: str) -> Mover:
    return cast("Mover", maker.movers.get(name))


def rows_of(database: Database) -> DatabaseJournal:
    session = journal.insert_session(database, "nightly")
    assert journal.claim_session(database) is not None
    return DatabaseJournal(database, journal.start_task(database, session, "db"), session)


def disk(path: str) -> Disk:
    return Disk("vda", path, "qcow2", 1 << 20)


def vm(name: str, *paths: str) -> Vm:
    disks = tuple(disk(path) for path in paths or ("/images/a.qcow2",))
    return Vm(name, f"uuid-{name}", VmState.RUNNING, "x86_64", "q35", "bios", 1, 1, disks, (), False, False, "")


def reserve(place: Place, job: Job, wanted: Vm, ctx: Context | None = None) -> AbstractContextManager[Lease]:
    return place.resources.reserve(ctx or Context(), job, wanted, wanted.disks)


def cancelled() -> Context:
    """For a wait that ends at once."""
    ctx = Context()
    ctx.cancel.cancel()
    return ctx


def why_not(place: Place, job: Job, wanted: Vm) -> str:
    """What a task waits for."""
    reasons = list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place.journal, "waiting", reasons.append)
        with pytest.raises(Cancelled):
            reserve(place, job, wanted, cancelled()).__enter__()
    return reasons[0]


def with_slots(database: Database) -> None:
    """Proxies with more slots than the tests need, however few cores there are."""
    catalog.add_proxy(database, Proxy("near", "prod", 8))
    catalog.add_proxy(database, Proxy("far", "dr", 8))


def test_a_place_has_the_hosts_and_the_datastore_of_its_job(site: Database, tmp_path: Path) -> None:
    rows = rows_of(site)
    made = builder(site, tmp_path).build(get_job(site, "nightly"), rows)
    assert (made.source_host.name, made.target_host.name, made.datastore.path) == ("prod", "dr", "/srv/replicas")
    assert id(made.source) != id(made.target)
    assert made.journal is rows


def test_a_site_has_the_proxies_of_its_lease(site: Database, tmp_path: Path) -> None:
    catalog.add_proxy(site, Proxy("near", "prod", 1))
    maker, job = builder(site, tmp_path), get_job(site, "nightly")
    place = maker.build(job, rows_of(site))
    with reserve(place, job, vm("db")) as lease:
        made = place.with_proxies(lease)
    assert (made.source_proxy, made.target_proxy) == (catalog.get_proxy(site, "near"), catalog.get_proxy(site, "local"))
    assert (made.source_mover, made.target_mover) == (maker.movers.get("near"), maker.movers.get("local"))
    assert (made.same_mover, made.transport) == (False, TransportMode.LOCAL)
    assert (made.source, made.journal, made.datastore) == (place.source, place.journal, place.datastore)


def test_children_that_a_job_will_use_are_started_before_its_tasks_and_no_others(
    site: Database, tmp_path: Path
) -> None:
    catalog.add_proxy(site, Proxy("near", "prod", 1))
    catalog.add_proxy(site, Proxy("far", "dr", 1, ProxyKind.SERVICE))
    catalog.add_proxy(site, Proxy("spare", "", 1))
    maker = builder(site, tmp_path)
    maker.warm_up(get_job(site, "nightly"))
    assert set(cast("Movers", maker.movers)) == {"near"}


def test_one_proxy_on_both_ends_needs_no_wire(site: Database, tmp_path: Path) -> None:
    job = get_job(site, "nightly")
    place = builder(site, tmp_path).build(job, rows_of(site))
    with reserve(place, job, vm("db")) as lease:
        assert place.with_proxies(lease).same_mover


def test_tasks_of_one_controller_share_its_slots(site: Database, tmp_path: Path) -> None:
    catalog.add_proxy(site, Proxy("near", "prod", 2))
    catalog.add_proxy(site, Proxy("far", "dr", 4))
    maker, job, rows = builder(site, tmp_path), get_job(site, "nightly"), rows_of(site)
    one, two = maker.build(job, rows), maker.build(job, rows)
    with reserve(one, job, vm("db")) as lease:
        assert [lease.take(), lease.take(), lease.take()] == ["", "", "no free task slot on proxy near"]
        assert why_not(two, job, vm("web 1")) == "no free task slot on proxy near"
    with reserve(two, job, vm("web 1")) as lease:
        assert lease.take() == ""


def test_a_proxy_that_was_added_after_the_controller_began_is_used(site: Database, tmp_path: Path) -> None:
    job = get_job(site, "nightly")
    place = builder(site, tmp_path).build(job, rows_of(site))
    catalog.add_proxy(site, Proxy("late", "prod", 3))
    with reserve(place, job, vm("db")) as lease:
        assert lease.source_proxy.name == "late"


def test_no_more_snapshots_are_open_on_a_datastore_of_the_source_than_its_host_allows(
    site: Database, tmp_path: Path
) -> None:
    catalog.change_host(site, "prod", max_snapshots=2)
    with_slots(site)
    maker, job, rows = builder(site, tmp_path), get_job(site, "nightly"), rows_of(site)
    place = maker.build(job, rows)
    with reserve(place, job, vm("a")), reserve(place, job, vm("b", "/images/b.qcow2", "/fast/b.qcow2")):
        assert why_not(place, job, vm("c")) == "2 of 2 source snapshots are open on prod:/images"
        with reserve(place, job, vm("d", "/fast/d.qcow2")):
            pass


def test_no_more_disks_are_written_to_a_datastore_than_it_allows(site: Database, tmp_path: Path) -> None:
    catalog.change_datastore(site, "vault", max_transfers=1)
    with_slots(site)
    job = get_job(site, "nightly")
    place = builder(site, tmp_path).build(job, rows_of(site))
    with reserve(place, job, vm("a")) as lease:
        assert [lease.take(), lease.take()] == ["", "datastore vault is written by 1 disks already"]
        assert why_not(place, job, vm("b")) == "datastore vault is written by 1 disks already"


def test_a_proxy_that_does_not_answer_is_passed_over_with_a_warning_and_not_asked_all_the_time(
    site: Database, tmp_path: Path
) -> None:
    catalog.add_proxy(site, Proxy("near", "prod", 1, ProxyKind.SERVICE))
    maker, job, rows = builder(site, tmp_path), get_job(site, "nightly"), rows_of(site)
    mover(maker, "near").problem = "no route"
    place = maker.build(job, rows)
    for name in ("a", "b"):
        with reserve(place, job, vm(name)) as lease:
            assert lease.source_proxy.name == "local"
    assert rows.warnings == ["proxy 'near' is not used: proxy 'near': no route"]
    assert mover(maker, "near").asked == 1


def test_a_datastore_is_reached_by_the_first_proxy_that_answers(site: Database, tmp_path: Path) -> None:
    catalog.add_proxy(site, Proxy("far", "dr", 1, ProxyKind.SERVICE))
    maker = builder(site, tmp_path)
    assert mover_name(maker.mover_at("dr")) == "far"
    maker = builder(site, tmp_path)
    mover(maker, "far").problem = "no route"
    assert mover_name(maker.mover_at("dr")) == "local"
    assert mover_name(maker.mover_at("dr", "far")) == "far"


def test_a_child_is_not_started_only_to_ask_whether_it_answers(site: Database, tmp_path: Path) -> None:
    catalog.add_proxy(site, Proxy("near", "prod", 1))
    catalog.add_proxy(site, Proxy("spare", "prod", 1))
    maker, job = builder(site, tmp_path), get_job(site, "nightly")
    with reserve(maker.build(job, rows_of(site)), job, vm("db")) as lease:
        assert lease.source_proxy.name == "near"
    assert mover_name(maker.mover_at("dr")) == "local"
    assert set(cast("Movers", maker.movers)) == {"near", "local"}
    assert all(answer.asked == 0 for answer in cast("Movers", maker.movers).values())


def test_a_datastore_without_a_marker_gets_it_when_a_task_first_uses_it(site: Database, tmp_path: Path) -> None:
    job = get_job(site, "nightly")
    place = builder(site, tmp_path).build(job, rows_of(site))
    with reserve(place, job, vm("db")):
        assert catalog.get_datastore(site, "vault").marker == MARKER


def test_a_task_gets_nothing_if_its_datastore_is_another_one(site: Database, tmp_path: Path) -> None:
    catalog.change_datastore(site, "vault", marker=MARKER)
    maker, job = builder(site, tmp_path), get_job(site, "nightly")
    place = maker.build(job, rows_of(site))
    refused = pytest.raises(DatastoreError, match=r"is it mounted.*has no marker file")
    with refused, reserve(place, job, vm("db")):
        pass
    mover(maker, "local").marks["/srv/replicas"] = MARKER
    with reserve(place, job, vm("db")):
        pass


def mover_name(client: MoverClient) -> str:
    return cast("Mover", client).name
