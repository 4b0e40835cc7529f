"""The networks of a server, by what a network card tells of the one that it is connected to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from understudy.platforms.vsphere import trees
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.trees import Tree


@dataclass(frozen=True)
class Network:
    """A network.

    :ivar kind: ``network`` of hosts, ``dvportgroup``, or ``opaque`` (of a network virtualisation).
    """

    moref: str
    name: str
    kind: str


def networks(connection: Connection) -> Mapping[str, Network]:
    """All networks: by moref, distributed port groups also by their key, opaque ones by their id."""
    found: dict[str, Network] = {}
    for tree in trees.each(connection, "Network", ("name", "summary"), lambda tree: tree, page=1000):
        network = Network(tree.moref, tree.text("name"), _KINDS.get(tree.kind, "network"))
        found[network.moref] = network
        if opaque := _opaque_id(tree):
            found[opaque] = network
    for tree in trees.each(connection, "DistributedVirtualPortgroup", ("key",), lambda tree: tree, page=1000):
        if tree.moref in found:
            found[tree.text("key")] = found[tree.moref]
    return found


_KINDS = {"DistributedVirtualPortgroup": "dvportgroup", "OpaqueNetwork": "opaque"}


def _opaque_id(tree: Tree) -> str:
    summary = tree.values.get("summary")
    return "" if summary is None else summary.findtext("opaqueNetworkId", "")
