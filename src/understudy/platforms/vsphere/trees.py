"""Properties as the server wrote them, in trees of XML elements.

pyVmomi makes an object of every element: the devices of ten thousand VMs take it a minute, and XML's own parser a few
seconds. A tree also has what pyVmomi does not know yet, such as a new kind of device.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

from pyVmomi import vmodl

from understudy.errors import NotFound
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.faults import AnswerNotUnderstood
from understudy.platforms.vsphere.properties import object_spec, view_spec

# Small enough that a page of VMs with all of their devices is some tens of megabytes as a tree.
PAGE = 200
# Envelope, Body, the response, what it returns: elements in there are objects, or the token of the next page.
_RETURNED = 4
_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
_OPTIONS = vmodl.query.PropertyCollector.RetrieveOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Tree:
    """What was asked of one object.

    :ivar values: an element by path, its tags without namespaces; what is not set is not there.
    :ivar unreadable: why, by path, the server did not tell.
    """

    kind: str
    moref: str
    values: Mapping[str, ET.Element]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def text(self, path: str, default: str = "") -> str:
        """A value that is a text, a number or a reference; ``default`` if it is not set."""
        element = self.values.get(path)
        return default if element is None else element.text or default

    def number(self, path: str, default: int = 0) -> int:
        """A value that is a whole number."""
        return int(self.text(path) or default)

    def flag(self, path: str) -> bool:
        """A value that is true or false; one that is not set is false."""
        return truth(self.text(path))


def kind_of(element: ET.Element) -> str:
    """The type of an element's value: ``VirtualDisk``."""
    return element.get(_TYPE, "").rsplit(":", 1)[-1]


def truth(text: str | None) -> bool:
    """What a text of XML's type for true and false says."""
    return text in ("true", "1")


def each(
    connection: Connection, kind: str, paths: Sequence[str], read: Callable[[Tree], T], page: int = PAGE
) -> list[T]:
    """What ``read`` makes of ``paths`` of each object of ``kind`` on the server; a page of trees is held at a time.

    :raises UnderstudyError: if the server refuses.
    """

    def everything() -> list[T]:
        with view_spec(connection, kind, paths) as spec:
            return [read(tree) for tree in _pages(connection, spec, page)]

    return connection.read(f"list {kind} objects of {connection.address.name}", everything)


def of(connection: Connection, item: Any, paths: Sequence[str]) -> Tree:
    """``paths`` of one object, of pyVmomi's type.

    :raises NotFound: if it is gone.
    """
    what = f"read {item._wsdlName} {item._moId} of {connection.address.name}"
    spec = object_spec([item], paths)
    found = connection.read(what, lambda: list(_pages(connection, spec, PAGE)))
    if not found:
        raise NotFound(what, "the server has it no more", "see 'understudy host vms'")
    return found[0]


def _pages(connection: Connection, spec: Any, page: int) -> Iterator[Tree]:
    collector = connection.raw(connection.content.propertyCollector)
    text = collector.RetrievePropertiesEx([spec], _OPTIONS(maxObjects=page))
    while True:
        token = ""
        for element in _objects_and_token(text):
            if element.tag == "objects":
                yield _tree(element)
            else:
                token = element.text or ""
        if not token:
            return
        text = collector.ContinueRetrievePropertiesEx(token)


def _objects_and_token(text: bytes) -> Iterator[ET.Element]:
    """The elements of an answer, one at a time: a server may put more into a page than it was asked for."""
    depth, returned = 0, None
    try:
        for event, element in ET.iterparse(io.BytesIO(text), events=("start", "end")):
            depth += 1 if event == "start" else -1
            if event == "start" and depth == _RETURNED:
                returned = element
            if event == "end" and depth == _RETURNED and returned is not None:
                for part in element.iter():
                    part.tag = part.tag.rpartition("}")[2]
                if element.tag in ("objects", "token"):
                    yield element
                returned.clear()
    except ET.ParseError as exc:
        raise AnswerNotUnderstood(str(exc)) from exc


def _tree(found: ET.Element) -> Tree:
    owner = found.find("obj")
    values = {item.findtext("name", ""): value for item in found.iterfind("propSet")
              if (value := item.find("val")) is not None}  # fmt: skip
    unreadable = {item.findtext("path", ""): _fault_text(item.find("fault")) for item in found.iterfind("missingSet")}
    if owner is None:
        raise AnswerNotUnderstood("it has properties of no object")
    return Tree(owner.get("type", ""), owner.text or "", values, unreadable)


def _fault_text(fault: ET.Element | None) -> str:
    """The same as of a fault of pyVmomi's: its type, and the server's words."""
    if fault is None:
        return "the server does not say why"
    inner = fault.find("fault")
    words = [kind_of(fault if inner is None else inner), fault.findtext("localizedMessage", "").strip().rstrip(".")]
    return ": ".join(word for word in words if word)
