"""Checking a host: what it says of itself, and, of VMware vSphere, who could read its disks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from understudy.context import Context
from understudy.controller import catalog
from understudy.controller.choice import library_readers
from understudy.controller.control import cancel_on_interrupt
from understudy.controller.credentials import host_access
from understudy.controller.database import Database
from understudy.controller.live_test import OnStep
from understudy.controller.live_test import live_test as run_live_test
from understudy.controller.records import CheckedHost, ProxyLibrary
from understudy.controller.sites import SiteBuilder
from understudy.errors import MoverError, Refused, UnderstudyError
from understudy.model.job import Host
from understudy.model.live_test import LiveTestReport, LiveTestWish
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


def live_test(
    database: Database, sites: SiteBuilder, name: str, wish: LiveTestWish, on_step: OnStep
) -> LiveTestReport:
    """Make the live test of a host; Ctrl-C stops it, after it has cleaned up.

    :raises NotFound: if there is no such host, or proxy.
    :raises Refused: if it is not one of VMware vSphere.
    :raises HostUnreachable: if it does not answer.
    :raises MoverError: if no proxy can read its disks.
    """
    host = catalog.get_host(database, name)
    if not host.by_library:
        raise Refused(f"live test of host {name!r}", "it is not one of VMware vSphere", "run a job instead")
    access = host_access(database, host)
    platform = sites.platforms.get(host)
    mover = sites.movers.get(_reader(database, sites, host, wish.proxy))
    ctx = Context()
    with cancel_on_interrupt(ctx.cancel):
        report = run_live_test(ctx, platform, mover, wish, access.password, on_step)
    names = (*report.names, name, urlsplit(host.uri).hostname or "", access.user)
    return replace(report, names=tuple(sorted({item for item in names if item})))


def _reader(database: Database, sites: SiteBuilder, host: Host, wanted: str) -> str:
    if wanted:
        return catalog.get_proxy(database, wanted).name
    asked = [_ask(sites, host, proxy.name) for proxy in library_readers(host, catalog.list_proxies(database))]
    for item in asked:
        if item.usable:
            return item.proxy
    raise MoverError(f"disks of host {host.name!r}", "no proxy can read them",
                     f"see 'understudy host check {host.name}'")


def _ask(sites: SiteBuilder, host: Host, proxy: str) -> ProxyLibrary:
    try:
        facts = sites.movers.get(proxy).call(api.ProbeLibrary(host.library), api.LibraryFacts)
    except UnderstudyError as exc:
        return ProxyLibrary(proxy, None, str(exc))
    return ProxyLibrary(proxy, facts, facts.problem)
