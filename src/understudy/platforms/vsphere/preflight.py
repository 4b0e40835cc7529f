"""Looking at a vCenter or ESXi host before VMs are replicated from it: only reads, in a few questions."""

from __future__ import annotations

from urllib.parse import unquote
from xml.etree import ElementTree as ET

from understudy.model.preflight import DatastoreSpace, Preflight, Tracking, VmCheck
from understudy.platforms.vsphere import properties, trees
from understudy.platforms.vsphere.assessment import Licence, assess, is_read_only
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.devices import read_devices
from understudy.platforms.vsphere.privileges import check_privileges
from understudy.platforms.vsphere.trees import Tree

_VM_PATHS = (
    "name", "config.instanceUuid", "config.version", "config.changeTrackingEnabled", "config.template",
    "config.hardware.device", "capability.changeTrackingSupported", "snapshot.rootSnapshotList",
    "runtime.consolidationNeeded", "runtime.connectionState",
)  # fmt: skip
_STORE_PATHS = (
    "name", "summary.type", "summary.capacity", "summary.freeSpace", "summary.accessible", "summary.maintenanceMode",
)  # fmt: skip


def look(connection: Connection) -> Preflight:
    """Everything that matters of the server.

    :raises UnderstudyError: if it does not answer, or does not list its VMs.
    """
    vms = dict(trees.each(connection, "VirtualMachine", _VM_PATHS, _vm))
    stores = dict(trees.each(connection, "Datastore", _STORE_PATHS, _datastore))
    names = {moref: vm.name for moref, vm in vms.items()}
    privileges = check_privileges(connection, names, {moref: store.name for moref, store in stores.items()})
    kind = "vcenter" if connection.is_vcenter else "esxi"
    licences = _licences(connection)
    read_only = is_read_only(kind, licences)
    by_name = tuple(sorted(vms.values(), key=lambda vm: vm.name))
    space = tuple(sorted(stores.values(), key=lambda store: store.name))
    product = connection.product
    return Preflight(
        product=product.name,
        version=product.version,
        build=product.build,
        api_version=product.api,
        kind=kind,
        licences=tuple(licence.name for licence in licences),
        read_only=read_only,
        privileges=privileges,
        vms=by_name,
        datastores=space,
        findings=assess(product.api, read_only, privileges, by_name, space),
    )


def _vm(tree: Tree) -> tuple[str, VmCheck]:
    devices = read_devices(tree.values.get("config.hardware.device"))
    roots = tree.values.get("snapshot.rootSnapshotList")
    snapshots = [] if roots is None else list(roots)
    obstacle = _obstacle(tree)
    if devices.passed_through and not obstacle:
        obstacle = f"a device of the host is passed through to it ({', '.join(devices.passed_through)})"
    return tree.moref, VmCheck(
        name=unquote(tree.text("name")),
        uuid=tree.text("config.instanceUuid"),
        hardware=tree.text("config.version"),
        tracking=_tracking(tree),
        snapshots=sum(_count(item) for item in snapshots),
        deepest=max((_depth(item) for item in snapshots), default=0),
        unmerged=tree.flag("runtime.consolidationNeeded"),
        obstacle=obstacle,
        disks=tuple((disk.name, disk.obstacle) for disk in devices.disks if disk.obstacle),
    )


def _obstacle(tree: Tree) -> str:
    if tree.flag("config.template"):
        return "it is a template"
    state = tree.text("runtime.connectionState", "connected")
    if state != "connected":
        return f"the server has no access to it just now ({state})"
    if "config.version" not in tree.values:
        return "the server does not tell its configuration"
    return ""


def _tracking(tree: Tree) -> Tracking:
    if tree.flag("config.changeTrackingEnabled"):
        return Tracking.ON
    return Tracking.OFF if tree.flag("capability.changeTrackingSupported") else Tracking.UNSUPPORTED


def _count(snapshot: ET.Element) -> int:
    return 1 + sum(_count(child) for child in snapshot.iterfind("childSnapshotList"))


def _depth(snapshot: ET.Element) -> int:
    return 1 + max((_depth(child) for child in snapshot.iterfind("childSnapshotList")), default=0)


def _datastore(tree: Tree) -> tuple[str, DatastoreSpace]:
    problem = ""
    if not tree.flag("summary.accessible"):
        problem = "no host has access to it"
    elif (mode := tree.text("summary.maintenanceMode", "normal")) != "normal":
        problem = f"it is in maintenance mode ({mode})"
    return tree.moref, DatastoreSpace(
        name=unquote(tree.text("name")),
        kind=tree.text("summary.type"),
        capacity=tree.number("summary.capacity"),
        free=tree.number("summary.freeSpace"),
        problem=problem,
    )


def _licences(connection: Connection) -> list[Licence]:
    """Nothing where the account may not see them."""
    manager = connection.content.licenseManager
    if manager is None:
        return []
    found = properties.of(connection, manager, ["licenses"]).get("licenses", [])
    return [Licence(item.name or "", item.editionKey or "") for item in found]
