"""Where VMs are: their names and inventory paths, and which VM an operator means.

Names are unique in a folder only. A VM is called by its name, and where others have the same name by its inventory
path: ``Datacenter/vm/folder/name``. Slashes in names come from the server as ``%2f``, so a path is never ambiguous.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from understudy.errors import NotFound, Refused
from understudy.platforms.vsphere import trees
from understudy.platforms.vsphere.connection import Connection

# What may stand above a VM, and by which property each is below another. A vApp lies among resource pools, but names
# the folder where its VMs are shown.
_ABOVE = {"Folder": "parent", "Datacenter": "parent", "VirtualApp": "parentFolder"}
VM_PATHS = ("name", "parent", "parentVApp")


@dataclass(frozen=True)
class Node:
    """Something in the inventory; ``parent`` is the moref of what it is in, or empty."""

    moref: str
    name: str
    parent: str


@dataclass(frozen=True)
class Place:
    """A VM, its name and its inventory path."""

    moref: str
    name: str
    path: str


@dataclass(frozen=True)
class Directory:
    """All VMs of a server."""

    places: tuple[Place, ...]
    _times: Counter[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_times", Counter(place.name for place in self.places))

    def called(self, place: Place) -> str:
        """What a VM is called here: its name if no other has it, else its path."""
        return place.name if self._times[place.name] == 1 else place.path

    def find(self, called: str) -> Place | None:
        """The VM of that name or inventory path; None if there is none.

        :raises Refused: if several have the name.
        """
        found = [place for place in self.places if called in (place.name, place.path)]
        exact = [place for place in found if place.path == called]
        if len(found) > 1 and len(exact) != 1:
            paths = ", ".join(sorted(place.path for place in found))
            raise Refused(f"VM {called!r}", f"{len(found)} VMs have this name: {paths}", "name it by its path")
        return next(iter(exact or found), None)

    def require(self, called: str, server: str) -> Place:
        """The same.

        :raises NotFound: if there is none.
        """
        place = self.find(called)
        if place is None:
            raise NotFound(f"VM {called!r}", f"{server} has no VM of that name", "see 'understudy host vms'")
        return place


def path_of(node: Node, above: Mapping[str, Node]) -> str:
    """The inventory path of a node; the server's root folder has no name in it."""
    names = [node.name]
    while (node := above.get(node.parent, _NOTHING)) is not _NOTHING:
        if not node.parent:
            break
        names.append(node.name)
    return "/".join(reversed(names))


_NOTHING = Node("", "", "")


def vm_node(tree: trees.Tree) -> Node:
    """A VM, from a tree with :data:`VM_PATHS`."""
    return Node(tree.moref, tree.text("name"), tree.text("parent") or tree.text("parentVApp"))


def folders(connection: Connection) -> Mapping[str, Node]:
    """All that may stand above a VM, by moref."""
    found: dict[str, Node] = {}
    for kind, parent in _ABOVE.items():
        nodes = trees.each(connection, kind, ("name", parent), functools.partial(_node, parent))
        found.update({node.moref: node for node in nodes})
    return found


def _node(parent: str, tree: trees.Tree) -> Node:
    return Node(tree.moref, tree.text("name"), tree.text(parent))


def directory_of(nodes: Sequence[Node], above: Mapping[str, Node]) -> Directory:
    """The directory of VMs; one whose name the server does not tell cannot be called, and is left out."""
    return Directory(tuple(Place(node.moref, node.name, path_of(node, above)) for node in nodes if node.name))


def read_directory(connection: Connection) -> Directory:
    """The directory as it is now."""
    return directory_of(trees.each(connection, "VirtualMachine", VM_PATHS, vm_node, page=1000), folders(connection))
