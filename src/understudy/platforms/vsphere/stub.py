"""pyVmomi's transport, made strict: the server is proved on each connection, dead connections are not used, and every
failure that is not a fault of the server has one of two types."""

from __future__ import annotations

import functools
import select
import ssl
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from xml.etree import ElementTree as ET
from xml.parsers.expat import ExpatError

from pyVmomi import SoapStubAdapter
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
_SERVICE_NAMESPACE = "urn:vim25"
# A connection that lies longer is closed: servers and firewalls forget it without a word.
_IDLE_S = 60
_POOL_SIZE = 8

Connect = Callable[..., ServerConnection]


class Stub(SoapStubAdapter):  # type: ignore[misc]
    """Calls to one server. Threads share it: each call has a connection of the pool, or a new one, for itself."""

    def __init__(self, address: ServerAddress, connect: Connect, version: str, timeout_s: float) -> None:
        super().__init__(
            host=address.host, port=address.port, path=_SOAP_PATH, version=versionMap[version], poolSize=_POOL_SIZE,
            connectionPoolTimeout=_IDLE_S, httpConnectionTimeout=timeout_s,
        )  # fmt: skip
        self.scheme = connect

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:  # noqa: N802, N803
        """One call.

        :raises ConnectionLost: without an answer.
        :raises AnswerNotUnderstood: if pyVmomi does not understand the answer.
        """
        try:
            return super().InvokeMethod(mo, info, args, outerStub)
        except HTTPException as exc:
            raise ConnectionLost(_words(exc), sent=True) from exc
        except OSError as exc:
            raise ConnectionLost(_words(exc), sent=True) from exc
        except (ExpatError, TypeError, AttributeError, KeyError, ValueError) as exc:
            raise AnswerNotUnderstood(_words(exc)) from exc
        except Exception as exc:
            if type(exc) is not Exception:
                raise
            # What pyVmomi raises for an error without a fault in it.
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


def open_stub(address: ServerAddress, connect: Connect, timeout_s: float) -> Stub:
    """A stub that speaks the newest version of the API that both sides know.

    :raises HostUnreachable: if the server does not answer, is not the right one, or has no such version.
    """
    return Stub(address, connect, _common_version(address, connect, timeout_s), timeout_s)


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
    if status != 200:
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
