"""Sites: which proxy serves a host, and connections that are opened once and given back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.context import Context
from understudy.controller import catalog, journal, sites
from understudy.controller.database import Database
from understudy.controller.jobs import get_job
from understudy.controller.sites import PlatformPool, SiteBuilder, choose_proxy
from understudy.controller.task_journal import DatabaseJournal
from understudy.errors import HostUnreachable
from understudy.model.job import Proxy
from understudy.mover.client import MoverClient

HOSTS = st.sampled_from(["", "prod", "dr"])
PROXIES = st.dictionaries(st.sampled_from("abc"), HOSTS).map(
    lambda hosts: {"local": Proxy("local", "", 2), **{name: Proxy(name, host, 1) for name, host in hosts.items()}}
)


class Platform:
    """Counts how often it was opened and closed."""

    opened: list[str]
    closed: list[str]

    def __init__(self, uri: str) -> None:
        self.uri = uri
        Platform.opened.append(uri)

    def close(self) -> None:
        Platform.closed.append(self.uri)


@pytest.fixture(autouse=True)
def _platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    Platform.opened, Platform.closed = [], []
    monkeypatch.setattr(sites, "open_platform", Platform)


@given(st.sampled_from(["", "a", "b"]), st.sampled_from(["prod", "dr"]), PROXIES)
def test_a_host_is_served_by_the_wanted_proxy_else_its_own_else_the_built_in(
    wanted: str, host: str, proxies: Mapping[str, Proxy]
) -> None:
    chosen = choose_proxy(wanted, host, proxies)
    own = sorted(name for name, proxy in proxies.items() if proxy.host == host)
    assert chosen == (wanted or (own[0] if own else "local"))


def test_a_host_is_connected_to_once_until_the_pool_is_closed() -> None:
    pool = PlatformPool()
    assert pool.get("qemu:///a") is pool.get("qemu:///a")
    assert pool.get("qemu:///b") is not pool.get("qemu:///a")
    assert Platform.opened == ["qemu:///a", "qemu:///b"]
    pool.close()
    assert sorted(Platform.closed) == ["qemu:///a", "qemu:///b"]
    pool.get("qemu:///a")
    assert Platform.opened[2:] == ["qemu:///a"]


def test_a_host_that_does_not_answer_is_asked_again_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([HostUnreachable("host qemu:///a", "no route"), None])

    def open_platform(uri: str) -> Platform:
        problem = next(answers)
        if problem is not None:
            raise problem
        return Platform(uri)

    monkeypatch.setattr(sites, "open_platform", open_platform)
    pool = PlatformPool()
    with pytest.raises(HostUnreachable):
        pool.get("qemu:///a")
    assert isinstance(pool.get("qemu:///a"), Platform)


class Movers:
    """Names the mover that was asked for, in place of a client."""

    def get(self, name: str) -> MoverClient:
        return cast("MoverClient", f"mover {name}")


def builder(database: Database, home: Path) -> SiteBuilder:
    made = SiteBuilder(home, database)
    made.movers.close()
    made.movers = Movers()  # type: ignore[assignment]
    return made


def rows_of(database: Database) -> DatabaseJournal:
    session = journal.insert_session(database, "nightly")
    assert journal.claim_session(database) is not None
    return DatabaseJournal(database, journal.start_task(database, session, "db"), session, "prod")


def test_a_site_has_the_hosts_datastore_and_proxies_of_its_job(site: Database, tmp_path: Path) -> None:
    catalog.add_proxy(site, Proxy("near", "prod", 1))
    rows = rows_of(site)
    made = builder(site, tmp_path).build(get_job(site, "nightly"), rows)
    assert (made.source_host.name, made.target_host.name, made.datastore.path) == ("prod", "dr", "/srv/replicas")
    assert [str(made.source_mover), str(made.target_mover)] == ["mover near", "mover local"]
    assert not made.same_mover
    assert id(made.source) != id(made.target)
    assert made.journal is rows


def test_a_proxy_that_was_added_after_the_controller_began_can_be_used(site: Database, tmp_path: Path) -> None:
    maker, rows = builder(site, tmp_path), rows_of(site)
    catalog.add_proxy(site, Proxy("late", "prod", 3))
    job = get_job(site, "nightly")
    with maker.build(job, rows).resources.reserve(Context(), job, "db", 9) as lease:
        assert lease.parallel == min(3, catalog.get_proxy(site, "local").slots)


def test_one_proxy_on_both_ends_needs_no_wire(site: Database, tmp_path: Path) -> None:
    assert builder(site, tmp_path).build(get_job(site, "nightly"), rows_of(site)).same_mover


def test_tasks_of_one_controller_share_its_slots(site: Database, tmp_path: Path) -> None:
    catalog.add_proxy(site, Proxy("near", "prod", 1))
    catalog.add_proxy(site, Proxy("far", "dr", 4))
    maker, job, rows = builder(site, tmp_path), get_job(site, "nightly"), rows_of(site)
    one, two = maker.build(job, rows), maker.build(job, rows)
    with one.resources.reserve(Context(), job, "db", 3) as lease:
        assert lease.parallel == 1
        ctx = Context()
        ctx.cancel.cancel()
        with pytest.raises(Exception, match="cancelled"):
            two.resources.reserve(ctx, job, "web 1", 1).__enter__()
    with two.resources.reserve(Context(), job, "web 1", 1) as lease:
        assert lease.parallel == 1
