"""The privileges that an account needs, and which of them it has.

The table follows the vendor's documents; which of them a server really asks for was never tried on one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pyVmomi import vmodl

from understudy.errors import UnderstudyError
from understudy.model.preflight import PrivilegeCheck, Role
from understudy.platforms.vsphere import properties
from understudy.platforms.vsphere.connection import Connection

LOG = logging.getLogger(__name__)

VMS, DATASTORES, SERVER = "VMs", "datastores", "the whole server"
_KINDS = {VMS: "VirtualMachine", DATASTORES: "Datastore"}
#: So many objects in one question: a server checks each of them against each privilege.
_AT_A_TIME = 100

NEEDED = (
    PrivilegeCheck("VirtualMachine.State.CreateSnapshot", Role.SOURCE, "hold a VM still while it is read", VMS),
    PrivilegeCheck("VirtualMachine.State.RemoveSnapshot", Role.SOURCE, "remove that snapshot, and merge deltas", VMS),
    PrivilegeCheck("VirtualMachine.Config.ChangeTracking", Role.SOURCE, "switch changed block tracking on", VMS),
    PrivilegeCheck("VirtualMachine.Provisioning.DiskRandomRead", Role.SOURCE, "read disks by the disk library", VMS),
    PrivilegeCheck("VirtualMachine.Provisioning.GetVmFiles", Role.SOURCE, "open a VM's disk files to read", VMS),
    PrivilegeCheck("VirtualMachine.Config.DiskLease", Role.SOURCE, "keep a disk in place while it is read", VMS),
    PrivilegeCheck("Datastore.Browse", Role.SOURCE, "find the files of a VM", DATASTORES),
    PrivilegeCheck("Global.DisableMethods", Role.SOURCE, "keep a VM from moving while it is read", SERVER),
    PrivilegeCheck("Global.EnableMethods", Role.SOURCE, "let it move again", SERVER),
    PrivilegeCheck("Global.Licenses", Role.SOURCE, "see whether the licence allows all of this", SERVER),
    PrivilegeCheck("VirtualMachine.GuestOperations.Execute", Role.GUESTS, "run programs in guests by their Tools", VMS),
    PrivilegeCheck("VirtualMachine.GuestOperations.Modify", Role.GUESTS, "put files into guests by their Tools", VMS),
    PrivilegeCheck("VirtualMachine.GuestOperations.Query", Role.GUESTS, "see whether these programs have ended", VMS),
    PrivilegeCheck("VirtualMachine.Inventory.Create", Role.TARGET, "make replica VMs", SERVER),
    PrivilegeCheck("VirtualMachine.Inventory.Delete", Role.TARGET, "remove replica VMs", SERVER),
    PrivilegeCheck("VirtualMachine.Config.AddNewDisk", Role.TARGET, "make their disks", SERVER),
    PrivilegeCheck("VirtualMachine.Config.RemoveDisk", Role.TARGET, "take off disks that the source lost", SERVER),
    PrivilegeCheck("VirtualMachine.Config.AddRemoveDevice", Role.TARGET, "give them controllers and cards", SERVER),
    PrivilegeCheck("VirtualMachine.Config.EditDevice", Role.TARGET, "connect their cards in a failover", SERVER),
    PrivilegeCheck("VirtualMachine.Config.CPUCount", Role.TARGET, "give them processors", SERVER),
    PrivilegeCheck("VirtualMachine.Config.Memory", Role.TARGET, "give them memory", SERVER),
    PrivilegeCheck("VirtualMachine.Config.AdvancedConfig", Role.TARGET, "mark them as replicas", SERVER),
    PrivilegeCheck("VirtualMachine.Config.Annotation", Role.TARGET, "say in their notes what they are", SERVER),
    PrivilegeCheck("VirtualMachine.Config.Rename", Role.TARGET, "rename them", SERVER),
    PrivilegeCheck("VirtualMachine.Config.Settings", Role.TARGET, "set their firmware and options", SERVER),
    PrivilegeCheck("VirtualMachine.Config.Resource", Role.TARGET, "set their processors and memory", SERVER),
    PrivilegeCheck("VirtualMachine.Provisioning.DiskRandomAccess", Role.TARGET, "write disks by the library", SERVER),
    PrivilegeCheck("VirtualMachine.State.RevertToSnapshot", Role.TARGET, "go to a restore point", SERVER),
    PrivilegeCheck("VirtualMachine.Interact.PowerOn", Role.TARGET, "start a replica", SERVER),
    PrivilegeCheck("VirtualMachine.Interact.PowerOff", Role.TARGET, "stop a replica", SERVER),
    PrivilegeCheck("Datastore.AllocateSpace", Role.TARGET, "take room for disks and snapshots", DATASTORES),
    PrivilegeCheck("Network.Assign", Role.TARGET, "connect replicas to networks", SERVER),
    PrivilegeCheck("Resource.AssignVMToPool", Role.TARGET, "place replicas on hosts", SERVER),
)


def check_privileges(
    connection: Connection, vms: Mapping[str, str], datastores: Mapping[str, str]
) -> tuple[PrivilegeCheck, ...]:
    """Which of :data:`NEEDED` the account has, as far as the server tells.

    :param vms, datastores: names by moref.
    """
    root = connection.content.rootFolder._moId
    places = {VMS: vms, DATASTORES: datastores, SERVER: {root: "the root folder"}}
    found: dict[tuple[str, str], PrivilegeCheck] = {}
    for place, names in places.items():
        wanted = [check for check in NEEDED if check.place == place]
        answers = _ask(connection, _KINDS.get(place, "Folder"), list(names), [check.privilege for check in wanted])
        for check in wanted:
            granted = {moref: grants[check.privilege] for moref, grants in answers.items()}
            missing = tuple(sorted(names[moref] for moref, is_granted in granted.items() if not is_granted))
            found[check.place, check.privilege] = PrivilegeCheck(
                check.privilege, check.role, check.purpose, check.place, len(granted), missing
            )
    return tuple(found[check.place, check.privilege] for check in NEEDED)


def _ask(
    connection: Connection, kind: str, morefs: Sequence[str], privileges: list[str]
) -> dict[str, dict[str, bool]]:
    """Whether each privilege is granted, by moref; nothing if the server does not tell."""
    if not morefs:
        return {}
    try:
        session = properties.of(connection, connection.content.sessionManager, ["currentSession"]).get("currentSession")
        found: dict[str, dict[str, bool]] = {}
        for start in range(0, len(morefs), _AT_A_TIME):
            items = [connection.managed(kind, moref) for moref in morefs[start : start + _AT_A_TIME]]
            for answer in _query(connection, session, items, privileges):
                found[answer.entity._moId] = {item.privId: item.isGranted for item in answer.privAvailability}
    except UnderstudyError as exc:
        LOG.info("privileges at %s are not told: %s", connection.address.name, exc)
        return {}
    return {moref: grants for moref, grants in found.items() if set(grants) >= set(privileges)}


def _query(connection: Connection, session: Any, items: list[Any], privileges: list[str]) -> list[Any]:
    manager = connection.content.authorizationManager

    def ask() -> list[Any]:
        try:
            return list(manager.HasUserPrivilegeOnEntities(items, session.userName, privileges))
        except (vmodl.fault.MethodNotFound, vmodl.fault.NotSupported):
            # Older servers answer for a session only.
            return list(manager.HasPrivilegeOnEntities(items, session.key, privileges))

    return connection.read(f"privileges at {connection.address.name}", ask)
