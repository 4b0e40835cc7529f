"""What is around the VMs of a server: hosts and datastores, as values."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.platforms.vsphere import trees
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.trees import Tree

_HOST = (
    "name", "runtime.connectionState", "runtime.inMaintenanceMode", "summary.config.product.version",
    "summary.hardware.numCpuThreads", "summary.hardware.memorySize",
)  # fmt: skip
_DATASTORE = (
    "name", "summary.type", "summary.url", "summary.accessible", "summary.capacity", "summary.freeSpace",
    "summary.maintenanceMode", "summary.multipleHostAccess",
)  # fmt: skip


@dataclass(frozen=True)
class EsxiHost:
    """An ESXi host of the server; ``usable`` if it is connected and not in maintenance."""

    moref: str
    name: str
    version: str
    cpus: int
    memory_bytes: int
    usable: bool


@dataclass(frozen=True)
class VsphereDatastore:
    """A datastore, sizes in bytes.

    :ivar accessible: at least one host reaches it; of one that none reaches, the sizes are the last that were known.
    :ivar shared: more than one host reaches it.
    """

    moref: str
    name: str
    kind: str
    url: str
    capacity: int
    free: int
    accessible: bool
    shared: bool


def hosts(connection: Connection) -> tuple[EsxiHost, ...]:
    """The ESXi hosts, by name."""
    found = trees.each(connection, "HostSystem", _HOST, _host)
    return tuple(sorted(found, key=lambda host: host.name))


def datastores(connection: Connection) -> tuple[VsphereDatastore, ...]:
    """The datastores, by name."""
    found = trees.each(connection, "Datastore", _DATASTORE, _datastore)
    return tuple(sorted(found, key=lambda store: (store.name, store.moref)))


def _host(tree: Tree) -> EsxiHost:
    return EsxiHost(
        moref=tree.moref,
        name=tree.text("name"),
        version=tree.text("summary.config.product.version"),
        cpus=tree.number("summary.hardware.numCpuThreads"),
        memory_bytes=tree.number("summary.hardware.memorySize"),
        usable=tree.text("runtime.connectionState") == "connected" and not tree.flag("runtime.inMaintenanceMode"),
    )


def _datastore(tree: Tree) -> VsphereDatastore:
    return VsphereDatastore(
        moref=tree.moref,
        name=tree.text("name"),
        kind=tree.text("summary.type"),
        url=tree.text("summary.url"),
        capacity=tree.number("summary.capacity"),
        free=tree.number("summary.freeSpace"),
        accessible=tree.flag("summary.accessible") and tree.text("summary.maintenanceMode", "normal") == "normal",
        shared=tree.flag("summary.multipleHostAccess"),
    )
