"""SOAP between pyVmomi and the simulator: what a request asks, answers and faults of our own, and altered answers.

Only answers about a snapshot or about a task of ours are altered; all others pass as the simulator wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.dom import minidom
from xml.etree import ElementTree as ET

from pyVmomi import SoapAdapter, vim
from pyVmomi.VmomiSupport import Object

from tests.vsphere.client import VERSION

_VIM = "urn:vim25"
_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope'
    ' xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"'
    ' xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
    "<soapenv:Body>{}</soapenv:Body></soapenv:Envelope>"
)
_SUBJECT = re.compile(rb'<obj type="(VirtualMachineSnapshot|Task|Datastore)">([^<]+)</obj>')


@dataclass(frozen=True)
class Request:
    """A call: its method, the object that it is made on, and its arguments."""

    method: str
    kind: str
    moref: str
    arguments: ET.Element

    def text(self, *path: str) -> str | None:
        """The text of the first argument, or of a field in it; None if it is not there."""
        return text(self.arguments, *path)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A boolean argument."""
        value = self.text(name)
        return default if value is None else value in ("true", "1")

    def all(self, *path: str) -> list[ET.Element]:
        """All elements at that path in the arguments."""
        return self.arguments.findall("/".join(f"{{{_VIM}}}{name}" for name in path))


def text(element: ET.Element, *path: str) -> str | None:
    """The text of a field of an argument; None if it is not there."""
    found = element.find("/".join(f"{{{_VIM}}}{name}" for name in path))
    return None if found is None else found.text or ""


@dataclass(frozen=True)
class Answer:
    """What goes back to the client."""

    status: int
    body: bytes


def parsed(body: bytes) -> Request:
    """The call that `body` makes."""
    envelope = ET.fromstring(body)
    content = envelope.find("{http://schemas.xmlsoap.org/soap/envelope/}Body")
    assert content is not None
    call = content[0]
    this = call.find(f"{{{_VIM}}}_this")
    assert this is not None
    return Request(call.tag.rpartition("}")[2], this.get("type", ""), this.text or "", call)


def returned(method: str, value: Any, kind: Any) -> Answer:
    """The answer that a call of `method` returned `value`."""
    # An empty list has no element.
    content = "" if isinstance(value, list) and not value else _rendered(value, "returnval", kind)
    return Answer(200, _ENVELOPE.format(f'<{method}Response xmlns="{_VIM}">{content}</{method}Response>').encode())


def task_started(method: str, moref: str) -> Answer:
    """The answer that a call of `method` started the task."""
    return returned(method, vim.Task(moref), vim.Task)


def refused(fault: Any) -> Answer:
    """The answer that a call met `fault`."""
    name = type(fault).__name__.rpartition(".")[2]
    info = Object(name=f"{name}Fault", type=object, version=VERSION, flags=0)
    detail = SoapAdapter.SerializeFaultDetail(fault, info, VERSION, {_VIM: ""})
    detail = detail.replace(f"<{name}Fault", f'<{name}Fault xmlns="{_VIM}"', 1)
    message = SoapAdapter.XmlEscape(fault.msg or name)
    fault_xml = (
        f"<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{message}</faultstring>"
        f"<detail>{detail}</detail></soapenv:Fault>"
    )
    return Answer(500, _ENVELOPE.format(fault_xml).encode())


def started_task(answer: Answer) -> str:
    """The moref of the task that an answer of the simulator names."""
    found = re.search(rb'<returnval [^>]*type="Task"[^>]*>([^<]+)</returnval>', answer.body)
    assert found is not None, answer.body
    return found[1].decode()


def subjects(body: bytes) -> set[tuple[str, str]]:
    """The snapshots, tasks and datastores, as (type, moref), whose properties an answer has."""
    return {(kind.decode(), moref.decode()) for kind, moref in _SUBJECT.findall(body)}


def altered(body: bytes, alter: Callable[[str, str, minidom.Element], None]) -> bytes:
    """An answer in which `alter` has changed the properties of some objects: called with type, moref and element."""
    document = minidom.parseString(body)
    for subject in document.getElementsByTagName("obj"):
        parent = subject.parentNode
        assert isinstance(parent, minidom.Element)
        alter(subject.getAttribute("type"), content(subject), parent)
    return document.toxml("utf-8")


def altered_whole(body: bytes, alter: Callable[[minidom.Element], None]) -> bytes:
    """An answer that is about one object only, changed."""
    document = minidom.parseString(body)
    assert document.documentElement is not None
    alter(document.documentElement)
    return document.toxml("utf-8")


def values(subject: minidom.Element) -> Iterator[tuple[str, minidom.Element]]:
    """The properties of an object in an answer: the name and the element with the value."""
    for tag in ("propSet", "changeSet"):
        for entry in subject.getElementsByTagName(tag):
            name, value = child(entry, "name"), child(entry, "val")
            if name is not None and value is not None:
                yield content(name), value


def type_of(element: minidom.Element) -> str:
    """The type that an element says it has."""
    return element.getAttributeNS("http://www.w3.org/2001/XMLSchema-instance", "type")


def child(element: minidom.Element, name: str) -> minidom.Element | None:
    """The first child element of that name."""
    for node in element.childNodes:
        if isinstance(node, minidom.Element) and node.tagName == name:
            return node
    return None


def content(element: minidom.Element) -> str:
    """The text in an element."""
    return "".join(node.data for node in element.childNodes if isinstance(node, minidom.Text))


def set_content(element: minidom.Element, new: str) -> None:
    """Replace all that is in an element by `new`."""
    assert element.ownerDocument is not None
    element.childNodes.clear()
    element.appendChild(element.ownerDocument.createTextNode(new))


def replace_child(element: minidom.Element, name: str, value: Any, kind: Any) -> None:
    """Put `value` in the place of the child element of that name; None removes it."""
    if (old := child(element, name)) is not None:
        element.removeChild(old)
    if value is not None:
        document = minidom.parseString(
            f'<x xmlns="{_VIM}" xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
            f' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">{_rendered(value, name, kind)}</x>'
        )
        assert document.documentElement is not None
        assert element.ownerDocument is not None
        (new,) = document.documentElement.childNodes
        element.appendChild(element.ownerDocument.importNode(new, True))


def _rendered(value: Any, name: str, kind: Any) -> str:
    info = Object(name=name, type=kind, version=VERSION, flags=0)
    return str(SoapAdapter.SerializeToStr(value, info, VERSION, {_VIM: ""}))

