"""Where on its server is a replica VM made: on which datastore, by which host, connected to which networks?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.errors import NotFound, PlatformError, Refused
from understudy.platforms.snapshot_target import PlaceSpace
from understudy.platforms.vsphere import properties
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.surroundings import VsphereDatastore, datastores

_HOST = ("name", "parent", "network", "runtime.connectionState", "runtime.inMaintenanceMode")


@dataclass(frozen=True)
class TargetNetwork:
    """A network that a card can be connected to.

    :ivar ref: pyVmomi's object.
    :ivar switch, port_group: UUID of the distributed switch and key of its port group; empty for other networks.
    :ivar opaque: kind and id of a network of a network virtualisation; empty for other networks.
    """

    name: str
    ref: Any
    switch: str = ""
    port_group: str = ""
    opaque: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Placement:
    """Where a VM is made; ``folder``, ``pool`` and ``host`` are pyVmomi's objects."""

    store: VsphereDatastore
    folder: Any
    pool: Any
    host: Any
    networks: Mapping[str, TargetNetwork]


@dataclass(frozen=True)
class _Host:
    name: str
    ref: Any
    parent: Any
    networks: tuple[Any, ...]


def space(connection: Connection, place: str) -> PlaceSpace:
    """Space of a datastore.

    :raises NotFound: if there is none of that name.
    """
    store = datastore(connection, place)
    return PlaceSpace(store.capacity, store.free, store.accessible)


def datastore(connection: Connection, place: str) -> VsphereDatastore:
    """The datastore that is called ``name``, ``[name]``, or ``datacenter/name`` where several have the name.

    :raises NotFound: if there is none.
    :raises Refused: if several are called so.
    """
    wanted = place.strip().removeprefix("[").removesuffix("]")
    stores = datastores(connection)
    found = [store for store in stores if store.name == wanted]
    if not found and "/" in wanted:
        center, _, name = wanted.rpartition("/")
        found = [store for store in stores if store.name == name
                 and _datacenter(connection, store).get("name") == center]  # fmt: skip
    if not found:
        raise NotFound(f"datastore {place!r}", f"{connection.address.name} has none of that name",
                       "see 'understudy host check', and name it as there")  # fmt: skip
    if len(found) > 1:
        centers = ", ".join(sorted(f"{_datacenter(connection, store).get('name')}/{store.name}" for store in found))
        raise Refused(f"datastore {place!r}", f"{len(found)} datastores have this name: {centers}",
                      "name it with its datacenter")  # fmt: skip
    return found[0]


def placement(connection: Connection, place: str, wanted: Collection[str]) -> Placement:
    """Where to make a VM whose disks are on ``place``: by the host that has most of the ``wanted`` networks.

    :raises PlatformError: if no host can use the datastore.
    """
    store = datastore(connection, place)
    hosts = _hosts_of(connection, store)
    if not store.accessible or not hosts:
        raise PlatformError(f"datastore {place!r}", "no ESXi host that is in service can write to it",
                            "end the maintenance of the datastore or of a host")  # fmt: skip
    names = _network_names(connection, [item for host in hosts for item in host.networks])
    chosen = min(hosts, key=lambda host: (-len(set(wanted) & {names[item._moId] for item in host.networks}), host.name))
    pool = properties.of(connection, chosen.parent, ["resourcePool"]).get("resourcePool")
    folder = _datacenter(connection, store).get("vmFolder")
    return Placement(store, folder, pool, chosen.ref, networks(connection, chosen.networks))


def networks_of_host(connection: Connection, host: Any) -> Mapping[str, TargetNetwork]:
    """The networks that VMs of a host can be connected to, by name."""
    return networks(connection, tuple(properties.of(connection, host, ["network"]).get("network") or ()))


def networks(connection: Connection, items: Sequence[Any]) -> Mapping[str, TargetNetwork]:
    """The networks by name, without those that are a switch's way out."""
    found = [_network(connection, item) for item in items]
    return {network.name: network for network in sorted(filter(None, found), key=lambda network: network.name)}


def _network(connection: Connection, item: Any) -> TargetNetwork | None:
    if item._wsdlName == "DistributedVirtualPortgroup":
        seen = properties.of(connection, item, ["name", "key", "config.distributedVirtualSwitch", "config.uplink"])
        switch = seen.get("config.distributedVirtualSwitch")
        if switch is None or seen.get("config.uplink") or "DVUplinks" in seen.get("name", ""):
            return None
        uuid = properties.of(connection, switch, ["uuid"]).get("uuid", "")
        return TargetNetwork(seen.get("name", ""), item, uuid, seen.get("key", ""))
    if item._wsdlName == "OpaqueNetwork":
        seen = properties.of(connection, item, ["name", "summary"])
        summary = seen.get("summary")
        return TargetNetwork(seen.get("name", ""), item, opaque=(summary.opaqueNetworkType, summary.opaqueNetworkId))
    return TargetNetwork(properties.of(connection, item, ["name"]).get("name", ""), item)


def _network_names(connection: Connection, items: Iterable[Any]) -> dict[str, str]:
    refs = {item._moId: item for item in items}
    return {moref: properties.of(connection, item, ["name"]).get("name", "") for moref, item in refs.items()}


def _hosts_of(connection: Connection, store: VsphereDatastore) -> list[_Host]:
    """The hosts in service that can write to a datastore, by name."""
    ref = connection.managed("Datastore", store.moref)
    mounts = properties.of(connection, ref, ["host"]).get("host") or ()
    writable = [mount.key for mount in mounts if mount.mountInfo.accessMode != "readOnly"
                and mount.mountInfo.accessible is not False and mount.mountInfo.mounted is not False]  # fmt: skip
    seen = properties.of_many(connection, writable, _HOST)
    found = [_Host(entry.get("name", ""), connection.managed("HostSystem", entry.moref), entry.get("parent"),
                   tuple(entry.get("network") or ()))
             for entry in seen if str(entry.get("runtime.connectionState")) == "connected"
             and not entry.get("runtime.inMaintenanceMode")]  # fmt: skip
    return sorted(found, key=lambda host: host.name)


def _datacenter(connection: Connection, store: VsphereDatastore) -> properties.Entry:
    """Name and folder of VMs of the datacenter that a datastore is in."""
    above = properties.of(connection, connection.managed("Datastore", store.moref), ["parent"]).get("parent")
    while above is not None and above._wsdlName != "Datacenter":
        above = properties.of(connection, above, ["parent"]).get("parent")
    if above is None:
        raise PlatformError(f"datastore {store.name!r}", "the server does not tell its datacenter",
                            "give the user's role the right to see it")  # fmt: skip
    return properties.of(connection, above, ["name", "vmFolder"])
