"""What ``host check`` shows: the facts of a host, or of VMware vSphere all that matters before VMs are replicated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

from understudy.cli.app import App
from understudy.cli.output import answer, printable, table
from understudy.cli.shapes import Shape
from understudy.controller.records import CheckedHost, ProxyLibrary
from understudy.errors import PlatformError
from understudy.model.inventory import HostFacts
from understudy.model.preflight import Finding, Gravity, Preflight, Role, Tracking
from understudy.units import format_size

_FOR = {Role.SOURCE: "as a source", Role.TARGET: "as a target", Role.GUESTS: "for guest operations"}


def facts_shape(name: str, facts: HostFacts) -> Shape:
    """A libvirt host that answered."""
    uid, gid = facts.emulator_user or (None, None)
    return {
        "name": name,
        "hostname": facts.hostname,
        "platform_version": facts.platform_version,
        "hypervisor_version": facts.hypervisor_version,
        "cpus": facts.cpus,
        "memory_bytes": facts.memory_bytes,
        "emulator_uid": uid,
        "emulator_gid": gid,
    }


def show_preflight(app: App, name: str, checked: CheckedHost) -> None:
    """Answer with what was found about a host of VMware vSphere.

    :raises PlatformError: after that, if it cannot be a source at all.
    """
    found = checked.preflight
    assert found is not None
    answer(app, preflight_shape(name, found, checked), lambda: _show(name, found, checked))
    blocking = [item for item in checked.findings if item.gravity is Gravity.BLOCKING]
    if blocking:
        raise PlatformError(f"check host {name!r}", f"{blocking[0].subject}: {blocking[0].why}", blocking[0].todo)


def preflight_shape(name: str, found: Preflight, checked: CheckedHost) -> Shape:
    """A host of VMware vSphere."""
    return {
        "name": name,
        "kind": found.kind,
        "product": found.product,
        "version": found.version,
        "build": found.build,
        "api_version": found.api_version,
        "licences": list(found.licences),
        "read_only": found.read_only,
        "usable": not any(item.gravity is Gravity.BLOCKING for item in checked.findings),
        "problems": [asdict(item) | {"gravity": item.gravity.value} for item in checked.findings],
        "privileges": [
            {
                "privilege": item.privilege,
                "role": item.role.value,
                "purpose": item.purpose,
                "place": item.place,
                "granted": item.granted,
                "asked": item.asked,
                "missing_on": list(item.missing_on),
            }
            for item in found.privileges
        ],
        "tracking": _tracking(found),
        "vms": [
            asdict(vm) | {
                "tracking": vm.tracking.value,
                "disks": [{"name": disk, "obstacle": why} for disk, why in vm.disks],
            }
            for vm in found.vms
        ],
        "datastores": [asdict(store) for store in found.datastores],
        "proxies": [_proxy_shape(item) for item in checked.proxies],
    }  # fmt: skip


def _proxy_shape(item: ProxyLibrary) -> Shape:
    facts = item.library
    return {
        "name": item.proxy,
        "nbdkit": facts.server_version if facts else "",
        "plugin": facts.plugin_version if facts else "",
        "library": facts.library_version if facts else "",
        "problem": item.problem,
    }


def _tracking(found: Preflight) -> dict[str, int]:
    return {kind.value: sum(vm.tracking is kind for vm in found.vms) for kind in Tracking}


def _show(name: str, found: Preflight, checked: CheckedHost) -> None:
    for line in _head(name, found):
        click.echo(printable(line))
    click.echo()
    table(("Datastore", "Kind", "Size", "Free", "Problem"), [
        (store.name, store.kind, format_size(store.capacity), format_size(store.free), store.problem or "-")
        for store in found.datastores
    ])  # fmt: skip
    click.echo()
    table(("Proxy", "nbdkit", "Plugin", "Disk library", "Can read"), [
        (shape["name"], shape["nbdkit"] or "-", shape["plugin"] or "-", shape["library"] or "-",
         "no" if shape["problem"] else "yes")
        for shape in map(_proxy_shape, checked.proxies)
    ])  # fmt: skip
    click.echo()
    for line in _finding_lines(checked.findings):
        click.echo(printable(line))


def _head(name: str, found: Preflight) -> Iterator[str]:
    kind = "a vCenter" if found.kind == "vcenter" else "a single ESXi host"
    yield f"{name}: {kind}, {found.product} {found.version} build {found.build}, API {found.api_version}"
    yield f"Licences: {', '.join(found.licences) or 'not shown to this account'}"
    for role in Role:
        asked = [item for item in found.privileges if item.role is role and item.granted is not None]
        granted = sum(item.granted is True for item in asked)
        told = f"{granted} of {len(asked)} granted" if asked else "not told by the server"
        yield f"Privileges {_FOR[role]}: {told}"
    tracking = _tracking(found)
    yield (f"{len(found.vms)} VMs. Changed block tracking: on {tracking['on']}, off {tracking['off']} (the first "
           f"session switches it on), not possible {tracking['unsupported']}")  # fmt: skip
    with_snapshots = sum(bool(vm.snapshots) for vm in found.vms)
    deepest = max((vm.deepest for vm in found.vms), default=0)
    unmerged, obstacles = sum(vm.unmerged for vm in found.vms), sum(bool(vm.obstacle) for vm in found.vms)
    yield (f"With snapshots: {with_snapshots}, deepest chain {deepest}; to be consolidated: {unmerged}; "
           f"cannot be replicated: {obstacles}")  # fmt: skip


def _finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        yield "No problems."
    for item in findings:
        todo = f"; {item.todo}" if item.todo else ""
        yield f"{item.gravity.value}: {item.subject}: {item.why}{todo}"
