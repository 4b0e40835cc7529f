"""Which VM is meant by a name, a path or a UUID, on a server that may have ten thousand of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from understudy.errors import NotFound, Refused
from understudy.platforms.vsphere import trees
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.inventory import vm_uuid
from understudy.platforms.vsphere.places import Directory, Place, read_directory

# A name that only one VM had so long ago counts as unique: reading all names takes seconds, and the description of a VM
# is asked for at every step of a run. What is found is read afresh, always.
_REMEMBER_S = 30.0
_INSTANCE = "config.instanceUuid"
_IDENTITY = ("name", _INSTANCE, "config.uuid")

T = TypeVar("T")


class Lookup:
    """Finds VMs; threads share it."""

    def __init__(self, connection: Connection, remember_s: float = _REMEMBER_S) -> None:
        self._connection = connection
        self._remember_s = remember_s
        self._known: tuple[float, Directory] | None = None

    def named(self, called: str, read: Callable[[Any, Place], T]) -> T:
        """What ``read`` makes of pyVmomi's object of the VM of that name or path. It must fail with
        :class:`NotFound` if the VM is gone, or is not called so any more; then all names are read again.

        :raises NotFound: if there is none.
        :raises Refused: if several have the name.
        """
        known = self._known
        if known is not None and time.monotonic() - known[0] < self._remember_s:
            try:
                place = known[1].find(called)
                if place is not None:
                    return read(self._vm(place.moref), place)
            except (NotFound, Refused):
                pass  # perhaps not any more
        directory = self.directory()
        place = directory.require(called, self._connection.address.name)
        return read(self._vm(place.moref), place)

    def directory(self) -> Directory:
        """All names and paths, as they are now."""
        directory = read_directory(self._connection)
        self._known = (time.monotonic(), directory)
        return directory

    def called(self, moref: str) -> str:
        """What the VM with that reference is called; empty if it is gone."""
        for directory in (self._known[1] if self._known else Directory(()), self.directory()):
            for place in directory.places:
                if place.moref == moref:
                    return directory.called(place)
        return ""

    def by_uuid(self, uuid: str) -> Any | None:
        """pyVmomi's object of the VM with that UUID; None if there is none.

        :raises Refused: if several have it: on a single ESXi host a copy has the UUID of its original.
        """
        if self._connection.is_vcenter:
            return self._found(uuid, by_instance=True) or self._found_old(uuid)
        seen = trees.each(self._connection, "VirtualMachine", _IDENTITY, lambda tree: tree)
        found = [tree for tree in seen if vm_uuid(tree) == uuid]
        if len(found) > 1:
            names = ", ".join(sorted(tree.text("name") for tree in found))
            raise Refused(f"VM {uuid}", f"{len(found)} VMs have this UUID: {names}", "give the copies their own UUIDs")
        return self._vm(found[0].moref) if found else None

    def _found(self, uuid: str, *, by_instance: bool) -> Any | None:
        """By the server's index. No two VMs of a vCenter have one instance UUID: it gives a copy another."""
        index = self._connection.content.searchIndex
        return self._connection.read(f"look up VM {uuid}", lambda: index.FindByUuid(None, uuid, True, by_instance))

    def _found_old(self, uuid: str) -> Any | None:
        """A VM that is known by the UUID of its BIOS, because it has no other."""
        vm = self._found(uuid, by_instance=False)
        return vm if vm is not None and not trees.of(self._connection, vm, _IDENTITY).text(_INSTANCE) else None

    def _vm(self, moref: str) -> Any:
        return self._connection.managed("VirtualMachine", moref)
