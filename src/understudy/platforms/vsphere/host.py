"""A vCenter or a single ESXi host: the platform's verbs, each told in the module that knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from understudy.errors import GuestError, PlatformError
from understudy.model.access import HostAccess
from understudy.model.inventory import HostFacts, Sighting, Vm, VmState
from understudy.platforms import CommitPatience
from understudy.platforms.vsphere import describing, inventory
from understudy.platforms.vsphere.connection import Connection, Limits
from understudy.platforms.vsphere.host_facts import host_facts
from understudy.platforms.vsphere.lookup import Lookup


def _unwritten(act: str) -> Callable[..., Any]:
    """A verb that nobody has written yet."""

    def refuse(self: VsphereHost, *_args: object, **_named: object) -> NoReturn:
        what = f"{act} on {self._connection.address.name}"
        raise PlatformError(what, "this version of Understudy cannot do it on VMware vSphere yet")

    return refuse


def _no_agent(act: str) -> Callable[..., Any]:
    def refuse(self: VsphereHost, *_args: object, **_named: object) -> NoReturn:
        what = f"{act} on {self._connection.address.name}"
        raise GuestError(what, "VMs of vSphere have no QEMU guest agent", "use another way into the guest, such as ssh")

    return refuse


class VsphereHost:
    """One server behind an address; implements :class:`understudy.platforms.Platform`."""

    def __init__(self, access: HostAccess, patience: CommitPatience, limits: Limits | None = None) -> None:
        """Connect and log in.

        :raises HostUnreachable: if the server does not answer, or is not the one that was confirmed.
        :raises PlatformError: if it refuses user and password.
        """
        self._connection = Connection(access, limits)
        self._lookup = Lookup(self._connection)
        self._patience = patience

    def close(self) -> None:
        """Log out."""
        self._connection.close()

    # --- inventory ----------------------------------------------------------------------------------------------------

    def facts(self) -> HostFacts:
        """Versions, and the size of all ESXi hosts together."""
        return host_facts(self._connection)

    def list_vms(self) -> tuple[Vm, ...]:
        """All VMs, by name; without definitions, which :meth:`describe_vm` gives."""
        return inventory.list_vms(self._connection)

    def sighting(self, name: str, uuid: str) -> Sighting | None:
        """The VM with that UUID, else the one of that name or inventory path."""
        return describing.sighting(self._connection, self._lookup, name, uuid)

    def describe_vm(self, name: str) -> Vm:
        """One VM by its name, if no other has it, or by its inventory path.

        :raises Refused: if several have the name.
        """
        return self._lookup.named(name, lambda vm, place: describing.describe(self._connection, vm, place, name))

    # --- source -------------------------------------------------------------------------------------------------------

    tracking = _unwritten("know what changed")
    snapshot = _unwritten("take a snapshot")
    hold_again = _unwritten("take over a snapshot")
    library_export = _unwritten("have disks read")
    markers = _unwritten("list markers of changes")
    remove_orphan = _unwritten("remove a marker of changes")
    keep_baseline = _unwritten("keep a baseline")
    sweep = _unwritten("remove what dead sessions left")
    traces = _unwritten("look for what dead sessions left")

    # There is no QEMU guest agent to ask: the server quiesces the guest itself, when it takes a snapshot.
    freeze = _no_agent("freeze a VM")
    thaw = _no_agent("thaw a VM")
    agent_command = _no_agent("ask the guest agent")

    # --- target -------------------------------------------------------------------------------------------------------

    define_replica = _unwritten("define a replica VM")
    start_replica = _unwritten("start a replica VM")
    stop_replica = _unwritten("stop a replica VM")
    undefine_replica = _unwritten("remove a replica VM")

    def replica_state(self, uuid: str) -> VmState | None:
        """Power state, or None without a VM."""
        return describing.state(self._connection, self._lookup, uuid)

    def replica_disks(self, uuid: str) -> set[str]:
        """The files of the VM's disks, the present ones and those at which their chains begin."""
        return describing.disk_files(self._connection, self._lookup, uuid)
