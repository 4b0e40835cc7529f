"""Checking a host: what it says of itself, and, of VMware vSphere, who could read its disks."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.controller import catalog
from understudy.controller.choice import library_readers
from understudy.controller.database import Database
from understudy.controller.records import CheckedHost, ProxyLibrary
from understudy.controller.sites import SiteBuilder
from understudy.errors import UnderstudyError
from understudy.model.job import Host
from understudy.model.preflight import Finding, Gravity, by_gravity
from understudy.mover import api


def check_host(database: Database, sites: SiteBuilder, name: str) -> CheckedHost:
    """Connect to a host and look at it.

    :raises NotFound: if there is no such host.
    :raises HostUnreachable: if it does not answer.
    """
    host = catalog.get_host(database, name)
    platform = sites.platforms.get(host)
    preflight = platform.preflight()
    if preflight is None:
        return CheckedHost(platform.facts())
    readers = library_readers(host, catalog.list_proxies(database))
    proxies = tuple(_ask(sites, host, proxy.name) for proxy in readers)
    findings = by_gravity([*preflight.findings, *assess_proxies(proxies)])
    return CheckedHost(preflight=preflight, proxies=proxies, findings=findings)


def assess_proxies(proxies: Sequence[ProxyLibrary]) -> list[Finding]:
    """What is missing on the proxies that could read a host's disks."""
    found = [Finding(Gravity.WARNING, f"proxy {item.proxy}", item.problem) for item in proxies if item.problem]
    if not any(item.usable for item in proxies):
        found.append(Finding(Gravity.BLOCKING, "proxies", "none of them can read the disks of this host",
                             "install nbdkit, its vddk plugin and the disk library on one: see docs/vsphere.md"))
    return found


def _ask(sites: SiteBuilder, host: Host, proxy: str) -> ProxyLibrary:
    try:
        facts = sites.movers.get(proxy).call(api.ProbeLibrary(host.library), api.LibraryFacts)
    except UnderstudyError as exc:
        return ProxyLibrary(proxy, None, str(exc))
    return ProxyLibrary(proxy, facts, facts.problem)
