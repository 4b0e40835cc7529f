"""Looking at a vCenter or ESXi host before VMs are replicated from it: only reads, in a few questions."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from understudy.model.preflight import DatastoreSpace, Preflight, Tracking, VmCheck
from understudy.platforms.vsphere import properties, trees
from understudy.platforms.vsphere.assessment import Licence, assess, is_read_only
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.inventory import LISTED, read_vm
from understudy.platforms.vsphere.places import directory_of, folders, vm_node
from understudy.platforms.vsphere.privileges import check_privileges
from understudy.platforms.vsphere.surroundings import hosts
from understudy.platforms.vsphere.trees import Tree

_VM_PATHS = (*LISTED, "config.changeTrackingEnabled", "snapshot.rootSnapshotList")
_STORE_PATHS = (
    "name", "summary.type", "summary.capacity", "summary.freeSpace", "summary.accessible", "summary.maintenanceMode",
)  # fmt: skip


def look(connection: Connection) -> Preflight:
    """Everything that matters of the server.

    :raises UnderstudyError: if it does not answer, or does not list its VMs.
    """
    vms = _vms(connection)
    stores = dict(trees.each(connection, "Datastore", _STORE_PATHS, _datastore))
    names = {moref: vm.name for moref, vm in vms.items()}
    privileges = check_privileges(connection, names, {moref: store.name for moref, store in stores.items()})
    kind = "vcenter" if connection.is_vcenter else "esxi"
    unusable = [host.name for host in hosts(connection) if not host.usable]
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
        findings=assess(product.api, read_only, privileges, by_name, space, unusable),
    )


def _vms(connection: Connection) -> dict[str, VmCheck]:
    """By moref; each is called as everywhere else."""
    found = dict(trees.each(connection, "VirtualMachine", _VM_PATHS, lambda tree: (vm_node(tree), _vm(tree))))
    directory = directory_of(list(found), folders(connection))
    called = {place.moref: directory.called(place) for place in directory.places}
    return {node.moref: replace(vm, name=called[node.moref]) for node, vm in found.items() if node.moref in called}


def _vm(tree: Tree) -> VmCheck:
    vm = read_vm(tree, {})
    roots = tree.values.get("snapshot.rootSnapshotList")
    snapshots = [] if roots is None else list(roots)
    return VmCheck(
        name=vm.name,
        uuid=vm.uuid,
        hardware=vm.machine,
        tracking=_tracking(tree),
        snapshots=sum(_count(item) for item in snapshots),
        deepest=max((_depth(item) for item in snapshots), default=0),
        unmerged=tree.flag("runtime.consolidationNeeded"),
        obstacle=vm.obstacle,
        disks=tuple((disk.name, disk.obstacle) for disk in vm.disks if disk.obstacle),
    )


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
