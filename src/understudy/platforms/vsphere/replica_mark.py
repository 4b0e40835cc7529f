"""Which VM of a server is a replica of ours? By its UUID, and by the mark that it has from birth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.errors import NotFound, PlatformError, Refused
from understudy.model.inventory import VmState
from understudy.model.replica import ReplicaIdentity
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.inventory import STATES
from understudy.platforms.vsphere.lookup import Lookup
from understudy.platforms.vsphere.machine import Machine

#: Settings of the VM: whose replica it is, the MAC addresses of the cards that a failover connects, and the names of
#: the disks that we gave it. A disk that somebody else gave it is never deleted.
OWNER, CONNECTED, DISKS = "understudy.replica", "understudy.connected", "understudy.disks"
_PATHS = (
    "name", "config.instanceUuid", "config.extraConfig", "config.files.vmPathName", "runtime.powerState",
    "runtime.connectionState", "runtime.host",
)  # fmt: skip


@dataclass(frozen=True)
class ReplicaVm:
    """A replica VM on its server.

    :ivar marks: settings of ours that it has.
    :ivar home: the directory of its files: ``[datastore] folder``.
    :ivar host: pyVmomi's object of the ESXi host that it is on.
    """

    machine: Machine
    marks: Mapping[str, str]
    state: VmState
    home: str
    host: Any

    @property
    def owner(self) -> str:
        """Id of the replica."""
        return self.marks[OWNER]

    @property
    def connected(self) -> frozenset[str]:
        """MAC addresses of the cards that a failover connects."""
        return frozenset(filter(None, self.marks.get(CONNECTED, "").split(",")))

    @property
    def own_disks(self) -> frozenset[str]:
        """Names of the disks that we gave it."""
        return frozenset(filter(None, self.marks.get(DISKS, "").split(",")))

    def has_file(self, file: str) -> bool:
        """Whether a file is in the VM's own directory."""
        return directory(file) == self.home


def directory(file: str) -> str:
    """The directory of a file: that of ``[ds] vm/disk.vmdk`` is ``[ds] vm``."""
    return file.rpartition("/")[0]


def marks(identity: ReplicaIdentity, connected: Iterable[str], disks: Iterable[str]) -> dict[str, str]:
    """The settings that a replica VM has from birth."""
    return {OWNER: identity.id, CONNECTED: ",".join(sorted(connected)), DISKS: ",".join(sorted(disks))}


def find(connection: Connection, lookup: Lookup, identity: ReplicaIdentity) -> ReplicaVm | None:
    """The VM of that replica; None if there is none.

    :raises Refused: if the VM of that UUID is not the replica's.
    :raises PlatformError: if the server cannot tell, because it does not reach the VM.
    """
    found = find_any(connection, lookup, identity.domain_uuid)
    if found is not None and found.owner != identity.id:
        raise Refused(f"replica VM {identity.name!r}", f"VM {found.machine.name!r}, another replica, has its UUID",
                      "remove that VM, or make the replica anew")  # fmt: skip
    return found


def find_any(connection: Connection, lookup: Lookup, uuid: str) -> ReplicaVm | None:
    """The replica VM with that UUID, of whichever replica; None if there is no VM with it.

    :raises Refused: if the VM is not a replica of ours.
    """
    ref = lookup.by_uuid(uuid)
    if ref is None:
        return None
    machine = Machine(connection, ref, uuid)
    try:
        seen = machine.get(*_PATHS)
    except NotFound:  # it went just now
        return None
    name = seen.get("name", uuid)
    reached = str(seen.get("runtime.connectionState", "connected"))
    if reached != "connected" or "config.instanceUuid" not in seen.values:
        # Nothing is known of it, above all not that its points are gone.
        raise PlatformError(f"replica VM {name!r}", f"the server cannot reach it: it is {reached}",
                            "check its ESXi host and its datastore")  # fmt: skip
    settings = settings_of(seen.get("config.extraConfig"))
    if not settings.get(OWNER):
        raise Refused(f"replica VM {name!r}", "this VM is not ours: it has not the mark of a replica",
                      "nothing was done to it; look who made it")  # fmt: skip
    return ReplicaVm(
        Machine(connection, ref, name), {key: settings[key] for key in (OWNER, CONNECTED, DISKS) if key in settings},
        STATES.get(str(seen.get("runtime.powerState")), VmState.SHUT_OFF),
        directory(seen.get("config.files.vmPathName", "")), seen.get("runtime.host"),
    )  # fmt: skip


def require(connection: Connection, lookup: Lookup, identity: ReplicaIdentity) -> ReplicaVm:
    """The VM of that replica.

    :raises NotFound: if there is none.
    """
    found = find(connection, lookup, identity)
    if found is None:
        raise gone(connection, identity.name)
    return found


def gone(connection: Connection, name: str) -> NotFound:
    """The error of a replica VM that is not there."""
    return NotFound(f"replica VM {name!r}", f"{connection.address.name} has it no more",
                    "run the job: it makes the VM anew")  # fmt: skip


def settings_of(options: Any) -> Mapping[str, str]:
    """The texts in a VM's ``extraConfig``; the last of one key counts."""
    return {option.key: str(option.value) for option in options or ()}
