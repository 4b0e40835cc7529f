"""What a server says of itself and of the ESXi hosts behind it."""

from __future__ import annotations

from understudy.errors import UnderstudyError
from understudy.model.inventory import HostFacts
from understudy.platforms.vsphere import trees
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.surroundings import EsxiHost, hosts

_FREE_EDITIONS = frozenset({"esxBasic", "esx.hypervisor"})


def host_facts(connection: Connection) -> HostFacts:
    """Versions, and the size of all usable ESXi hosts together."""
    product, found = connection.product, hosts(connection)
    usable = [host for host in found if host.usable]
    return HostFacts(
        hostname=connection.address.name,
        platform_version=f"{product.version} build {product.build}, API {product.api}",
        hypervisor_version=", ".join(sorted({host.version for host in found if host.version})),
        cpus=sum(host.cpus for host in usable),
        memory_bytes=sum(host.memory_bytes for host in usable),
        emulator_user=None,
        notes=(*_unusable(found), *_licence(connection)),
    )


def _unusable(found: tuple[EsxiHost, ...]) -> list[str]:
    return [f"ESXi host {host.name} is in maintenance, or not connected" for host in found if not host.usable]


def _licence(connection: Connection) -> list[str]:
    """What the licence of a single ESXi host forbids; nothing if the user may not see it."""
    if connection.is_vcenter:
        return []
    try:
        listed = trees.of(connection, connection.content.licenseManager, ("licenses",)).values.get("licenses")
    except UnderstudyError:
        return ["its licence cannot be read; a free ESXi host cannot be replicated from"]
    editions = {item.findtext("editionKey", "") for item in (() if listed is None else listed)}
    if editions & _FREE_EDITIONS:
        return ["it is a free ESXi: its licence forbids snapshots by the API, so nothing can be replicated from it"]
    return []
