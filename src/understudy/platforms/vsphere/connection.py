"""A session at a vCenter or ESXi host: logged in when needed, renewed once when it is lost, shared by threads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import GetWsdlType

from understudy.errors import PlatformError, UnderstudyError, UsageError
from understudy.model.access import HostAccess, LibraryLogin
from understudy.platforms.vsphere.address import ESXI, VCENTER, ServerAddress, parse_address
from understudy.platforms.vsphere.faults import (
    VSPHERE_ERRORS,
    ConnectionLost,
    Remedy,
    converted,
    reference,
    remedy,
)
from understudy.platforms.vsphere.stub import RawCalls, TimeLimits, connector, open_stub
from understudy.platforms.vsphere.trust import ServerConnection, pinned, thumbprint, tls_context

LOG = logging.getLogger(__name__)
# Messages of the server in the language of ours.
_LOCALE = "en"
_KINDS = {"VirtualCenter": VCENTER, "HostAgent": ESXI}
_WORDS = {VCENTER: "a vCenter", ESXI: "a single ESXi host"}

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Time limits of a connection.

    :ivar calls: of each call.
    :ivar keepalive_s: a session that nobody used for so long is used; servers end idle ones after half an hour.
    :ivar refused_s: how long refused credentials are not tried again: each try counts towards locking the account.
    """

    calls: TimeLimits = field(default_factory=TimeLimits)
    keepalive_s: float = 300.0
    refused_s: float = 60.0


@dataclass(frozen=True)
class Product:
    """What the server says of itself before anybody logs in."""

    name: str
    version: str
    build: str
    api: str
    instance: str


class Connection:
    """One session, at the server that ``access`` names. Every call goes through :meth:`read` or :meth:`act`."""

    def __init__(self, access: HostAccess, limits: Limits | None = None) -> None:
        """Connect and log in.

        :raises UsageError: if the address is not understood, has no user, or names the other kind of server.
        :raises HostUnreachable: if the server does not answer, or is not the one that was confirmed.
        :raises PlatformError: if it refuses user and password.
        """
        self.address: ServerAddress = parse_address(access.uri)
        self._access = access
        self._user = access.user or self.address.user
        self._limits = limits or Limits()
        if not self._user:
            raise UsageError(f"server {self.address.name}", "the user is missing", "give a credential")
        self._lock = threading.Lock()
        self._generation = 0
        self._refused: tuple[float, UnderstudyError] | None = None
        self._certificate = b""
        self._closed = threading.Event()
        pin = pinned(access.thumbprint)
        self._connect = connector(tls_context(pin), pin, self._saw)
        self._stub = open_stub(self.address, self._connect, self._limits.calls)
        self._keeper = threading.Thread(target=self._keep_alive, name=f"keepalive {self.address.name}", daemon=True)
        try:
            self.content: Any = self._greet()
            self.product = self._product()
            self._log_in()
        except BaseException:
            self._stub.DropConnections()
            raise
        self._keeper.start()

    # --- calls --------------------------------------------------------------------------------------------------------

    def read(self, what: str, call: Callable[[], T]) -> T:
        """What ``call`` returns: calls of pyVmomi that only read. It runs again, from its beginning, if the session or
        the connection was lost.

        :raises UnderstudyError: for any fault; see :func:`understudy.platforms.vsphere.faults.converted`.
        """
        return self._call(what, call, again=lambda _: True)

    def act(self, what: str, call: Callable[[], T]) -> T:
        """The same for one call of pyVmomi that changes something, or starts a task.

        It is made again only if it cannot have been done: nothing was sent, or the server answered that it does not
        know the session. After any other loss the caller must look what is there.
        """
        return self._call(what, call, again=lambda error: not (isinstance(error, ConnectionLost) and error.sent))

    def managed(self, kind: str, moref: str) -> Any:
        """pyVmomi's object of a reference, to make calls on; nothing is asked."""
        return GetWsdlType("urn:vim25", kind)(moref, self._stub)

    def raw(self, item: Any) -> Any:
        """``item`` with methods that return the server's answers as they are, for those too long for pyVmomi."""
        return type(item)(item._moId, RawCalls(self._stub))

    def another(self) -> ServerConnection:
        """A connection to the same server, checked as every other, for what is not SOAP; the caller closes it."""
        return self._connect(host=self.address.host, port=self.address.port, timeout=self._limits.calls.silence_s)

    @property
    def credential(self) -> tuple[str, str]:
        """User and password."""
        return self._user, self._access.password

    def library_login(self) -> LibraryLogin:
        """How the vendor's disk library logs in to this server."""
        return LibraryLogin(self.address.host, self._user, self._access.password, self.sha1, self._access.library)

    @property
    def sha1(self) -> str:
        """SHA-1 of the certificate that the server showed last: hexadecimal pairs with colons."""
        return thumbprint(self._certificate, "sha1")

    @property
    def is_vcenter(self) -> bool:
        """A vCenter, not a single ESXi host."""
        return self.address.scheme == VCENTER

    def close(self) -> None:
        """Log out. A server that does not answer ends the session itself."""
        self._closed.set()
        self._keeper.join()
        try:
            self.content.sessionManager.Logout()
        except VSPHERE_ERRORS as exc:
            LOG.debug("log out of %s: %s", self.address.name, exc)
        finally:
            self._stub.DropConnections()

    def _call(self, what: str, call: Callable[[], T], again: Callable[[BaseException], bool]) -> T:
        """A server that was started anew cuts the call and does not know the session either: each is mended once."""
        mended: set[Remedy] = set()
        while True:
            generation = self._generation
            self._check_open()
            try:
                return call()
            except VSPHERE_ERRORS as exc:
                helps = remedy(exc)
                if helps in mended:
                    raise converted(what, exc, self.name_of) from exc
                mended.add(helps)
                if helps is Remedy.LOGIN:
                    self._renew(generation)
                elif isinstance(exc, ConnectionLost) and again(exc):
                    LOG.info("%s: %s: tried again", what, exc)
                else:
                    raise converted(what, exc, self.name_of) from exc

    def name_of(self, item: Any) -> str:
        """An object as ``VirtualMachine vm-42 (web 1)``; without its name if the server does not tell it."""
        if item is None:
            return reference(item)
        query = vmodl.query.PropertyCollector
        spec = query.FilterSpec(
            objectSet=[query.ObjectSpec(obj=item)], propSet=[query.PropertySpec(type=type(item), pathSet=["name"])]
        )
        try:
            answer = self.content.propertyCollector.RetrievePropertiesEx([spec], query.RetrieveOptions())
        except VSPHERE_ERRORS:
            return reference(item)
        names = [prop.val for found in (answer.objects if answer else ()) for prop in found.propSet]
        return f"{reference(item)} ({names[0]})" if names else reference(item)

    # --- the session --------------------------------------------------------------------------------------------------

    def _saw(self, certificate: bytes) -> None:
        self._certificate = certificate

    def _greet(self) -> Any:
        what = f"server {self.address.name}"
        service = vim.ServiceInstance("ServiceInstance", self._stub)
        try:
            return service.RetrieveContent()
        except VSPHERE_ERRORS as exc:
            raise converted(what, exc) from exc

    def _product(self) -> Product:
        about = self.content.about
        kind = _KINDS.get(about.apiType, "")
        if kind != self.address.scheme:
            found = _WORDS.get(kind, f"a server of kind {about.apiType!r}")
            raise UsageError(f"server {self.address.name}", f"it is {found}, not {_WORDS[self.address.scheme]}",
                             f"use {kind or 'vpx'}:// in its address")  # fmt: skip
        return Product(about.name, about.version, about.build, about.apiVersion, about.instanceUuid or "")

    def _log_in(self) -> None:
        what = f"log in to {self.address.name} as {self._user}"
        if self._refused and time.monotonic() - self._refused[0] < self._limits.refused_s:
            raise self._refused[1]
        try:
            self.content.sessionManager.Login(self._user, self._access.password, _LOCALE)
        except vim.fault.InvalidLogin as exc:
            error = converted(what, exc)
            self._refused = (time.monotonic(), error)
            raise error from exc
        except VSPHERE_ERRORS as exc:
            raise converted(what, exc) from exc
        self._refused = None

    def _renew(self, lost: int) -> None:
        """Log in again, unless another thread has done so since generation ``lost``."""
        with self._lock:
            self._check_open()
            if self._generation == lost:
                LOG.info("the session at %s was lost: logging in again", self.address.name)
                self._log_in()
                self._generation += 1

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise PlatformError(f"server {self.address.name}", "the connection was closed")

    def _keep_alive(self) -> None:
        service = vim.ServiceInstance("ServiceInstance", self._stub)
        while not self._closed.wait(self._limits.keepalive_s):
            try:
                service.CurrentTime()
            except (*VSPHERE_ERRORS, UnderstudyError) as exc:
                # The next call that needs the session renews it, and tells if it cannot.
                LOG.debug("keep the session at %s: %s", self.address.name, exc)
