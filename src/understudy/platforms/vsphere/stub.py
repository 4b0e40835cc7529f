"""pyVmomi's transport, made strict: the server is proved on each connection, dead connections are not used, and every
failure that is not a fault of the server has one of two types."""

from __future__ import annotations

import functools
import gzip
import select
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from typing import Any
from xml.etree import ElementTree as ET
from xml.parsers.expat import ExpatError

from pyVmomi import SoapStubAdapter
from pyVmomi.SoapAdapter import SoapResponseDeserializer
from pyVmomi.VmomiSupport import versionMap

from understudy.errors import HostUnreachable
from understudy.platforms.vsphere.address import ServerAddress
from understudy.platforms.vsphere.faults import AnswerNotUnderstood, ConnectionLost
from understudy.platforms.vsphere.trust import ServerConnection

# A server answers in the newest of these that it offers. Newer ones have nothing that is used here, and every further
# one is one more set of answers that nobody has tried.
_VERSIONS = ("vim25/7.0.0.0", "vim25/6.7", "vim25/6.5")
_VERSIONS_PATH = "/sdk/vimServiceVersions.xml"
_SOAP_PATH = "/sdk"
_LOGIN = "Login"
_OK, _FAULT = 200, 500
_PIECE = 1 << 16
_SERVICE_NAMESPACE = "urn:vim25"
# A connection that lies longer is closed: servers and firewalls forget it without a word.
_IDLE_S = 60
_POOL_SIZE = 8

Connect = Callable[..., ServerConnection]


@dataclass(frozen=True)
class TimeLimits:
    """Of one call.

    :ivar silence_s: a server that says nothing for so long has failed, also when connecting.
    :ivar call_s: from the question to the end of the answer.
    """

    silence_s: float = 120.0
    call_s: float = 600.0


class Stub(SoapStubAdapter):  # type: ignore[misc]
    """Calls to one server. Threads share it: each call has a connection of the pool, or a new one, for itself."""

    def __init__(self, address: ServerAddress, connect: Connect, version: str, limits: TimeLimits) -> None:
        super().__init__(
            host=address.host, port=address.port, path=_SOAP_PATH, version=versionMap[version], poolSize=_POOL_SIZE,
            connectionPoolTimeout=_IDLE_S, httpConnectionTimeout=limits.silence_s,
        )  # fmt: skip
        self.scheme = connect
        self._limits = limits
        self.cookie: str = ""

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:  # noqa: ARG002, N802, N803
        """One call; a fault of the server is raised.

        :raises ConnectionLost: without an answer.
        :raises AnswerNotUnderstood: if pyVmomi does not understand the answer.
        """
        return self._understood(self.answer(mo, info, args), info.result)

    def answer(self, mo: Any, info: Any, args: Any) -> bytes:
        """The same, but the answer as the server wrote it."""
        request = self.SerializeRequest(mo, info, args)
        connection = self.GetConnection()
        try:
            status, text = self._exchange(connection, request, info.wsdlName == _LOGIN)
        except (OSError, HTTPException) as exc:
            connection.close()
            self.DropConnections()
            raise ConnectionLost(_words(exc), sent=True) from exc
        self.ReturnConnection(connection)
        if status == _OK:
            return text
        fault = self._understood(text, object) if status == _FAULT else None
        if not isinstance(fault, Exception):
            raise ConnectionLost(f"the server answers {status}", sent=True)
        raise fault

    def _exchange(self, connection: ServerConnection, request: bytes, login: bool) -> tuple[int, bytes]:
        """Ask, and read the whole answer.

        The session is the one that the answer to the login names, and no other: what the server gives a thread that
        comes without a session meanwhile must not replace it.
        """
        until = time.monotonic() + self._limits.call_s
        headers = {"SOAPAction": self.versionId, "Content-Type": "text/xml; charset=UTF-8", "Accept-Encoding": "gzip"}
        if self.cookie and not login:
            headers["Cookie"] = self.cookie
        connection.request("POST", self.path, request, headers)
        answer = connection.getresponse()
        pieces = []
        while piece := answer.read(_PIECE):
            pieces.append(piece)
            if time.monotonic() > until:
                raise TimeoutError(f"the answer was not complete after {self._limits.call_s:.0f} s")
        if answer.length:  # http.client takes the end of the connection for the end of the answer
            raise IncompleteRead(b"", answer.length)
        text = b"".join(pieces)
        if login and answer.status == _OK:
            self.cookie = (answer.getheader("Set-Cookie") or "").split(";")[0]
        return answer.status, gzip.decompress(text) if answer.getheader("Content-Encoding") == "gzip" else text

    def _understood(self, text: bytes, kind: Any) -> Any:
        try:
            return SoapResponseDeserializer(self).Deserialize(text, kind)
        except (ExpatError, TypeError, AttributeError, KeyError, ValueError) as exc:
            raise AnswerNotUnderstood(_words(exc)) from exc

    def GetConnection(self) -> Any:  # noqa: N802
        """A connection that the server has not closed.

        :raises ConnectionLost: if none can be made; nothing was sent.
        :raises HostUnreachable: if the server is not the right one.
        """
        try:
            while _closed_by_server(connection := super().GetConnection()):
                connection.close()
        except (OSError, HTTPException) as exc:
            raise ConnectionLost(_words(exc), sent=False) from exc
        return connection


def open_stub(address: ServerAddress, connect: Connect, limits: TimeLimits) -> Stub:
    """A stub that speaks the newest version of the API that both sides know.

    :raises HostUnreachable: if the server does not answer, is not the right one, or has no such version.
    """
    return Stub(address, connect, _common_version(address, connect, limits.silence_s), limits)


def connector(context: ssl.SSLContext, pin: str, seen: Callable[[bytes], None]) -> Connect:
    """Makes connections to the right server; see :class:`ServerConnection`."""
    return functools.partial(ServerConnection, context=context, pin=pin, seen=seen)


def _common_version(address: ServerAddress, connect: Connect, timeout_s: float) -> str:
    what = f"server {address.name}"
    connection = connect(host=address.host, port=address.port, timeout=timeout_s)
    try:
        connection.request("GET", _VERSIONS_PATH)
        answer = connection.getresponse()
        status, text = answer.status, answer.read()
    except (OSError, HTTPException) as exc:
        raise HostUnreachable(what, _words(exc), "check the address, the port and the network") from exc
    finally:
        connection.close()
    if status != _OK:
        raise HostUnreachable(what, f"it answers {status} instead of its versions",
                              "check that it is a vCenter or ESXi host, and that its services run")  # fmt: skip
    offered = _versions(what, text)
    for version in _VERSIONS:
        if version.removeprefix("vim25/") in offered:
            return version
    raise HostUnreachable(what, f"it offers the vSphere API in version {', '.join(sorted(offered)) or 'none'} only",
                          "use vSphere 6.5 or newer")  # fmt: skip


def _versions(what: str, text: bytes) -> set[str]:
    """The versions in the server's list, the present one and those that it still speaks."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as exc:
        raise HostUnreachable(what, "it does not tell its versions", "check that it is a vCenter or ESXi host") from exc
    spaces = [item for item in root.iterfind("namespace") if item.findtext("name") == _SERVICE_NAMESPACE]
    return {version.text or "" for space in spaces for version in space.iter("version")}


def _closed_by_server(connection: ServerConnection) -> bool:
    """Whether an idle connection has something to read: its end, or words that nobody asked for."""
    if connection.sock is None:
        return False
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _words(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


class RawCalls:
    """What stands in a managed object for its stub, so that its methods return answers as the server wrote them."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub

    def InvokeMethod(self, mo: Any, info: Any, args: Any) -> bytes:  # noqa: N802
        """One call; see :meth:`Stub.answer`."""
        return self._stub.answer(mo, info, args)
