"""Properties of managed objects, asked by their names, many at once and a page at a time.

Never by pyVmomi's attributes: they ask for one property each, fail when it is not set, and know nothing of a lost
session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vmodl
from pyVmomi.VmomiSupport import GetWsdlType

from understudy.errors import NotFound
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.faults import fault_text

PAGE = 500
_QUERY = vmodl.query.PropertyCollector


@dataclass(frozen=True)
class Entry:
    """What was asked of one object.

    :ivar values: by path; what is not set is not there.
    :ivar unreadable: why, by path, the server did not tell.
    """

    kind: str
    moref: str
    values: Mapping[str, Any]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def get(self, path: str, default: Any = None) -> Any:
        """The value, or ``default`` if it is not set or not told."""
        return self.values.get(path, default)


def collect(connection: Connection, kind: str, paths: Sequence[str], page: int = PAGE) -> list[Entry]:
    """``paths`` of all objects of ``kind`` (``VirtualMachine``) on the server.

    :raises UnderstudyError: if the server refuses.
    """

    def everything() -> list[Entry]:
        with view_spec(connection, kind, paths) as spec:
            return list(_pages(connection, spec, page))

    return connection.read(f"list {kind} objects of {connection.address.name}", everything)


def of(connection: Connection, item: Any, paths: Sequence[str]) -> Entry:
    """``paths`` of one object, of pyVmomi's type.

    :raises NotFound: if it is gone.
    """
    return of_many(connection, [item], paths)[0]


def of_many(connection: Connection, items: Sequence[Any], paths: Sequence[str]) -> list[Entry]:
    """``paths`` of objects of one kind, in the order of ``items``.

    :raises NotFound: if one is gone.
    """
    if not items:
        return []
    kind = items[0]._wsdlName
    what = f"read {kind} {items[0]._moId} of {connection.address.name}"
    spec = object_spec(items, paths)
    entries = connection.read(what, lambda: list(_pages(connection, spec, PAGE)))
    found = {entry.moref: entry for entry in entries}
    if gone := [item._moId for item in items if item._moId not in found]:
        raise NotFound(what, f"the server has {kind} {', '.join(gone)} no more")
    return [found[item._moId] for item in items]


@contextmanager
def view_spec(connection: Connection, kind: str, paths: Sequence[str]) -> Iterator[Any]:
    """What to ask for ``paths`` of all objects of ``kind``; it holds inside the context."""
    content, type_ = connection.content, GetWsdlType("urn:vim25", kind)
    view = content.viewManager.CreateContainerView(content.rootFolder, [type_], True)
    walk = _QUERY.TraversalSpec(name="view", path="view", skip=False, type=type(view))
    try:
        yield _QUERY.FilterSpec(
            objectSet=[_QUERY.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
            propSet=[_QUERY.PropertySpec(type=type_, pathSet=list(paths))],
        )
    finally:
        with suppress(vmodl.fault.ManagedObjectNotFound):  # it went with its session
            view.Destroy()


def object_spec(items: Sequence[Any], paths: Sequence[str]) -> Any:
    """What to ask for ``paths`` of objects of one kind."""
    return _QUERY.FilterSpec(
        objectSet=[_QUERY.ObjectSpec(obj=item) for item in items],
        propSet=[_QUERY.PropertySpec(type=type(items[0]), pathSet=list(paths))],
    )


def _pages(connection: Connection, spec: Any, page: int) -> Iterator[Entry]:
    collector = connection.content.propertyCollector
    answer = collector.RetrievePropertiesEx([spec], _QUERY.RetrieveOptions(maxObjects=page))
    while answer is not None:
        for found in answer.objects:
            yield _entry(found)
        if not answer.token:
            return
        answer = collector.ContinueRetrievePropertiesEx(answer.token)


def _entry(found: Any) -> Entry:
    return Entry(
        found.obj._wsdlName,
        found.obj._moId,
        {item.name: item.val for item in found.propSet},
        {item.path: fault_text(item.fault) for item in found.missingSet or ()},
    )
