"""A vCenter or a single ESXi host: the platform's verbs, each told in the module that knows it."""

from __future__ import annotations

from understudy.model.access import HostAccess
from understudy.model.inventory import HostFacts, Sighting, Vm
from understudy.model.preflight import Preflight
from understudy.platforms import CommitPatience
from understudy.platforms.vsphere import describing, inventory
from understudy.platforms.vsphere.connection import Connection, Limits
from understudy.platforms.vsphere.host_facts import host_facts
from understudy.platforms.vsphere.lookup import Lookup
from understudy.platforms.vsphere.preflight import look
from understudy.platforms.vsphere.source import VsphereSource
from understudy.platforms.vsphere.target import VsphereTarget


class VsphereHost(VsphereSource, VsphereTarget):
    """One server behind an address; implements :class:`understudy.platforms.Platform`."""

    def __init__(self, access: HostAccess, patience: CommitPatience, limits: Limits | None = None) -> None:
        """Connect and log in.

        :raises HostUnreachable: if the server does not answer, or is not the one that was confirmed.
        :raises PlatformError: if it refuses user and password.
        """
        connection = Connection(access, limits)
        super().__init__(connection, Lookup(connection), patience)

    def close(self) -> None:
        """Log out."""
        self._connection.close()

    # --- inventory ----------------------------------------------------------------------------------------------------

    def facts(self) -> HostFacts:
        """Versions, and the size of all ESXi hosts together."""
        return host_facts(self._connection)

    def preflight(self) -> Preflight:
        """Everything that matters before VMs are replicated from it."""
        return look(self._connection)

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
