"""One VM of a server: whether it is there, and its full description."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from understudy.errors import NotFound
from understudy.model.inventory import Sighting, Vm, VmState
from understudy.platforms.vsphere import trees
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.definition import domain_definition
from understudy.platforms.vsphere.devices import read_devices
from understudy.platforms.vsphere.hardware import DESCRIBED, vm_hardware
from understudy.platforms.vsphere.inventory import move_under_way, read_vm, rename, vm_state, vm_uuid
from understudy.platforms.vsphere.lookup import Lookup
from understudy.platforms.vsphere.networks import networks
from understudy.platforms.vsphere.places import Place

_IDENTITY = ("name", "config.instanceUuid", "config.uuid", "runtime.powerState")
_DEVICES = "config.hardware.device"


def describe(connection: Connection, vm: Any, place: Place, called: str) -> Vm:
    """The VM with its definition, called as it was asked for.

    :raises NotFound: if it is gone, or has another name than in ``place``.
    """
    tree, known = trees.of(connection, vm, DESCRIBED), networks(connection)
    _check_name(tree, place)
    found = rename(read_vm(tree, known), called)
    if _DEVICES not in tree.values:
        return found
    definition = domain_definition(vm_hardware(tree, known, place.path))
    return replace(found, definition=definition, obstacle=found.obstacle or move_under_way(connection, tree))


def sighting(connection: Connection, lookup: Lookup, name: str, uuid: str) -> Sighting | None:
    """The VM with that UUID, else the one of that name or path; None if there is none.

    :raises Refused: if several have the name.
    """
    vm = lookup.by_uuid(uuid) if uuid else None
    if vm is not None:
        tree = _identity(connection, vm)
        if tree is not None and (called := lookup.called(vm._moId)):
            return Sighting(called, vm_uuid(tree), vm_state(tree))
    try:
        return lookup.named(name, lambda found, place: _seen(connection, found, place, name)) if name else None
    except NotFound:
        return None


def state(connection: Connection, lookup: Lookup, uuid: str) -> VmState | None:
    """Power state of the VM with that UUID; None if there is none."""
    vm = lookup.by_uuid(uuid)
    tree = None if vm is None else _identity(connection, vm)
    return None if tree is None else vm_state(tree)


def disk_files(connection: Connection, lookup: Lookup, uuid: str) -> set[str]:
    """The files of the disks of the VM with that UUID; empty if there is none."""
    vm = lookup.by_uuid(uuid)
    if vm is None:
        return set()
    try:
        devices = read_devices(trees.of(connection, vm, (_DEVICES,)).values.get(_DEVICES))
    except NotFound:
        return set()
    return {file for disk in devices.disks for file in (disk.file, disk.base) if file}


def _seen(connection: Connection, vm: Any, place: Place, called: str) -> Sighting:
    tree = trees.of(connection, vm, _IDENTITY)
    _check_name(tree, place)
    return Sighting(called, vm_uuid(tree), vm_state(tree))


def _identity(connection: Connection, vm: Any) -> trees.Tree | None:
    try:
        return trees.of(connection, vm, _IDENTITY)
    except NotFound:  # it went just now
        return None


def _check_name(tree: trees.Tree, place: Place) -> None:
    if tree.text("name") != place.name:
        raise NotFound(f"VM {place.name!r}", f"it is called {tree.text('name')!r} now", "see 'understudy host vms'")
