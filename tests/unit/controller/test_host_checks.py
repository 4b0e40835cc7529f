"""Checking hosts: who is asked, and what is missing on the proxies that could read the disks of a vCenter."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from understudy.controller import catalog
from understudy.controller.credentials import Credential, CredentialKind, add_credential
from understudy.controller.database import Database
from understudy.controller.host_checks import check_host
from understudy.controller.records import CheckedHost
from understudy.controller.sites import SiteBuilder
from understudy.errors import MoverError, NotFound
from understudy.model.access import DiskLibrary
from understudy.model.inventory import HostFacts
from understudy.model.job import Host, Proxy
from understudy.model.preflight import Finding, Gravity, Preflight
from understudy.mover import api

FACTS = HostFacts("kvm", "9", "7", 2, 1, (0, 0))
NOTE = Finding(Gravity.NOTE, "server", "a note")
PREFLIGHT = Preflight("vCenter", "8", "1", "8.0", "vcenter", (), False, (), (), (), (NOTE,))
GOOD = api.LibraryFacts("1.42.3", "1.42.3", "8.0.2")


@dataclass
class Sites:
    """The platform and the proxies of one test; a proxy's answer is what it has, or why it does not answer."""

    preflight: Preflight | None
    answers: dict[str, api.LibraryFacts | MoverError] = field(default_factory=dict)
    asked: list[tuple[str, object]] = field(default_factory=list)

    @property
    def platforms(self) -> Any:
        return SimpleNamespace(get=lambda host: SimpleNamespace(facts=lambda: FACTS, preflight=lambda: self.preflight))

    @property
    def movers(self) -> Any:
        return SimpleNamespace(get=lambda name: SimpleNamespace(call=lambda request, kind: self._call(name, request)))

    def _call(self, name: str, request: object) -> api.LibraryFacts:
        self.asked.append((name, request))
        answer = self.answers[name]
        if isinstance(answer, MoverError):
            raise answer
        return answer


@pytest.fixture
def home(site: Database) -> Database:
    add_credential(site, Credential("admin", "root", CredentialKind.PASSWORD, "geheim"))
    library = DiskLibrary("/opt/vddk", "vddk")
    catalog.add_host(site, Host("vc", "vpx://vc/", "", credential="admin", thumbprint="AB" * 32, library=library))
    catalog.add_proxy(site, Proxy("far", "prod", 2))
    return site


def checked(database: Database, sites: Sites, name: str = "vc") -> CheckedHost:
    return check_host(database, cast(SiteBuilder, sites), name)


def test_a_libvirt_host_is_its_facts_and_no_proxy_is_asked(home: Database) -> None:
    sites = Sites(None)
    assert checked(home, sites, "prod") == CheckedHost(FACTS)
    assert sites.asked == []
    with pytest.raises(NotFound):
        checked(home, sites, "mars")


def test_every_proxy_is_asked_for_the_library_of_the_host(home: Database) -> None:
    sites = Sites(PREFLIGHT, {"local": GOOD, "far": api.LibraryFacts("1.32.5", problem="the plugin is missing")})
    found = checked(home, sites)
    assert sorted(sites.asked, key=str) == [
        ("far", api.ProbeLibrary(DiskLibrary("/opt/vddk", "vddk"))),
        ("local", api.ProbeLibrary(DiskLibrary("/opt/vddk", "vddk"))),
    ]  # fmt: skip
    assert [(item.proxy, item.usable) for item in found.proxies] == [("far", False), ("local", True)]
    assert found.findings == (Finding(Gravity.WARNING, "proxy far", "the plugin is missing"), NOTE)


def test_proxies_of_the_host_come_before_all_others(home: Database) -> None:
    catalog.add_proxy(home, Proxy("near", "vc", 2))
    sites = Sites(PREFLIGHT, {"near": GOOD})
    assert [item.proxy for item in checked(home, sites).proxies] == ["near"]


def test_a_host_whose_disks_no_proxy_can_read_is_no_source(home: Database) -> None:
    silent = MoverError("proxy 'far'", "it does not answer")
    found = checked(home, Sites(PREFLIGHT, {"local": api.LibraryFacts(problem="no nbdkit"), "far": silent}))
    assert [(item.gravity, item.subject) for item in found.findings] == [
        (Gravity.BLOCKING, "proxies"), (Gravity.WARNING, "proxy far"), (Gravity.WARNING, "proxy local"),
        (Gravity.NOTE, "server"),
    ]  # fmt: skip
    assert found.findings[1].why == "proxy 'far': it does not answer"
