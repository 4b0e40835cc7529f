"""VMs as values: what a vCenter or an ESXi host says of a VM, and what of it stands in the way of replication."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from understudy.errors import NotFound
from understudy.model.inventory import Disk, Nic, Vm, VmState
from understudy.platforms.vsphere import trees
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.devices import Devices, VirtualDisk, VirtualNic, read_devices
from understudy.platforms.vsphere.networks import Network, networks
from understudy.platforms.vsphere.places import VM_PATHS, Node, directory_of, folders, vm_node
from understudy.platforms.vsphere.trees import Tree

#: What a list of VMs needs; few and small, but for the devices.
LISTED = (
    *VM_PATHS, "config.instanceUuid", "config.uuid", "config.template", "config.firmware", "config.version",
    "config.hardware.memoryMB", "config.hardware.numCPU", "config.hardware.device", "runtime.powerState",
    "runtime.connectionState", "runtime.bootTime", "runtime.cleanPowerOff", "runtime.faultToleranceState",
    "runtime.consolidationNeeded", "capability.changeTrackingSupported",
)  # fmt: skip
_DEVICES = "config.hardware.device"
STATES = {"poweredOn": VmState.RUNNING, "suspended": VmState.PAUSED, "poweredOff": VmState.SHUT_OFF}
_ARCH = "x86_64"
# Tasks that take a VM to another host or datastore. Its snapshots wait for them, or they for its snapshots.
_MOVES = frozenset({"VirtualMachine.migrate", "VirtualMachine.relocate", "Drm.ExecuteVMotionLRO"})
_RUNNING_TASK = frozenset({"running", "queued"})


@dataclass(frozen=True)
class Listed:
    """A VM of a list, not yet called by its name or path."""

    node: Node
    vm: Vm


def list_vms(connection: Connection) -> tuple[Vm, ...]:
    """All VMs, by name, without their definitions."""
    known = networks(connection)
    found = trees.each(connection, "VirtualMachine", LISTED, lambda tree: Listed(vm_node(tree), read_vm(tree, known)))
    directory = directory_of([item.node for item in found], folders(connection))
    called = {place.moref: directory.called(place) for place in directory.places}
    vms = [rename(item.vm, called[item.node.moref]) for item in found if item.node.moref in called]
    return tuple(sorted(vms, key=lambda vm: vm.name))


def read_vm(tree: Tree, known: Mapping[str, Network]) -> Vm:
    """The VM in a tree with :data:`LISTED`, without its definition.

    :param known: networks, as :func:`understudy.platforms.vsphere.networks.networks` gives them.
    """
    devices = read_devices(tree.values.get(_DEVICES))
    state = vm_state(tree)
    return Vm(
        name=tree.text("name"),
        uuid=vm_uuid(tree),
        state=state,
        arch=_ARCH,
        machine=tree.text("config.version"),
        firmware="uefi" if tree.text("config.firmware") == "efi" else "bios",
        memory_bytes=tree.number("config.hardware.memoryMB") << 20,
        vcpus=tree.number("config.hardware.numCPU"),
        disks=tuple(_disk(disk, tree.flag("capability.changeTrackingSupported")) for disk in devices.disks),
        nics=tuple(_nic(nic, known) for nic in devices.nics),
        # There is no QEMU guest agent. VMware Tools are the server's affair: it quiesces the guest itself.
        has_agent_channel=False,
        agent_connected=False,
        definition="",
        obstacle=_vm_obstacle(tree, devices),
        clean_shutdown=tree.flag("runtime.cleanPowerOff"),
        run="" if state is VmState.SHUT_OFF else tree.text("runtime.bootTime", "on"),
        notes=_notes(tree),
    )


def vm_uuid(tree: Tree) -> str:
    """What a VM is known by: unique in a vCenter, and kept when it moves. A very old VM has that of its BIOS only."""
    return tree.text("config.instanceUuid") or tree.text("config.uuid")


def vm_state(tree: Tree) -> VmState:
    """Power state of a VM; of one that the server cannot reach, the last that it knew."""
    return STATES.get(tree.text("runtime.powerState"), VmState.SHUT_OFF)


def rename(vm: Vm, name: str) -> Vm:
    """``vm``, called ``name``."""
    return vm if vm.name == name else replace(vm, name=name)


def move_under_way(connection: Connection, tree: Tree) -> str:
    """Why a VM is better left alone just now, by its recent tasks in a tree with ``recentTask``; empty if it is not."""
    listed = tree.values.get("recentTask")
    tasks = [connection.managed("Task", item.text) for item in (() if listed is None else listed) if item.text]
    for task in tasks:
        seen = _task(connection, task)
        if seen is not None and seen.text("info.descriptionId") in _MOVES and seen.text("info.state") in _RUNNING_TASK:
            return "it is being moved to another host or datastore"
    return ""


def _task(connection: Connection, task: Any) -> Tree | None:
    try:
        return trees.of(connection, task, ("info.descriptionId", "info.state"))
    except NotFound:  # tasks are forgotten some minutes after their end
        return None


def _vm_obstacle(tree: Tree, devices: Devices) -> str:
    connected = tree.text("runtime.connectionState", "connected")
    if connected != "connected":
        return f"the server cannot reach it: it is {connected}"
    if tree.unreadable:
        path, why = next(iter(sorted(tree.unreadable.items())))
        return f"the server does not tell its {path} ({why})"
    if _DEVICES not in tree.values:
        return "the server does not tell its configuration"
    if tree.flag("config.template"):
        return "it is a template"
    if tree.text("runtime.faultToleranceState", "notConfigured") != "notConfigured":
        return "it is protected by Fault Tolerance: it cannot have snapshots"
    if devices.passed_through:
        return f"a device of its host is passed through to it ({devices.passed_through[0]}): it cannot have snapshots"
    return ""


def _notes(tree: Tree) -> tuple[str, ...]:
    if tree.flag("runtime.consolidationNeeded"):
        return ("its disks need consolidation",)
    return ()


def _disk(disk: VirtualDisk, trackable: bool) -> Disk:
    return Disk(
        name=disk.name,
        path=disk.base,
        image_format="vmdk",
        size=disk.capacity,
        bus=str(disk.controller or ""),
        tracked=trackable and not disk.obstacle,
        obstacle=disk.obstacle,
    )


def _nic(nic: VirtualNic, known: Mapping[str, Network]) -> Nic:
    return Nic(nic.mac, nic.kind, network_name(nic, known), str(nic.model or nic.device))


def network_name(nic: VirtualNic, known: Mapping[str, Network]) -> str:
    """What a network card is connected to; the server's reference, if it does not tell a name."""
    found = known.get(nic.network)
    return found.name if found else nic.network_name or nic.network
