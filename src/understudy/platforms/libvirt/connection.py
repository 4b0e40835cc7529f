"""Connections to libvirt, and the border where libvirt's errors become ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import libvirt

from understudy.errors import HostUnreachable, NotFound, PlatformError, UnderstudyError

_LOST = frozenset(
    {
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
    }
)


def _keep_quiet(_context: object, _error: object) -> None:
    """libvirt prints every error on stderr unless a handler takes it; each comes as an exception as well."""


libvirt.registerErrorHandler(_keep_quiet, None)


def error_text(error: libvirt.libvirtError) -> str:
    """libvirt's own words, without its repeated prefix."""
    return str(error.get_error_message() or error)


def connection_lost(error: libvirt.libvirtError) -> bool:
    """Whether the error says that the daemon is gone, and nothing about what was asked."""
    transport = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
    return error.get_error_code() in _LOST and error.get_error_domain() in transport


@contextmanager
def libvirt_errors(what: str, kind: type[UnderstudyError] = PlatformError, todo: str = "") -> Iterator[None]:
    """Turn libvirt errors inside the block into ``kind``, or :class:`HostUnreachable` when the connection is gone."""
    try:
        yield
    except libvirt.libvirtError as exc:
        if connection_lost(exc):
            raise HostUnreachable(what, error_text(exc), "check the host and its libvirt daemon") from exc
        raise kind(what, error_text(exc), todo) from exc


class Connection:
    """One connection to a host's libvirt; opened again when it died."""

    def __init__(self, uri: str) -> None:
        """Connect to ``uri``.

        :raises HostUnreachable: if the daemon does not answer.
        """
        self.uri = uri
        self._conn = self._open()

    def _open(self) -> libvirt.virConnect:
        try:
            return libvirt.open(self.uri)
        except libvirt.libvirtError as exc:
            todo = "check the URI, the network and that libvirt runs there"
            raise HostUnreachable(f"host {self.uri}", error_text(exc), todo) from exc

    @property
    def conn(self) -> libvirt.virConnect:
        """The live connection."""
        if not self._alive():
            self._conn = self._open()
        return self._conn

    def _alive(self) -> bool:
        try:
            return bool(self._conn.isAlive())
        except libvirt.libvirtError:
            return False

    def domain(self, uuid: str) -> libvirt.virDomain | None:
        """The domain with that UUID, or None."""
        return self._lookup(lambda: self.conn.lookupByUUIDString(uuid), f"VM {uuid}")

    def domain_by_name(self, name: str) -> libvirt.virDomain | None:
        """The domain called ``name``, or None."""
        return self._lookup(lambda: self.conn.lookupByName(name), f"VM {name!r}")

    def require_domain(self, uuid: str, name: str) -> libvirt.virDomain:
        """The domain with that UUID.

        :raises NotFound: if it is gone.
        """
        domain = self.domain(uuid)
        if domain is None:
            raise NotFound(f"VM {name!r}", f"host {self.uri} has it no more", "check the host, or edit the job")
        return domain

    def _lookup(self, call: Callable[[], libvirt.virDomain], what: str) -> libvirt.virDomain | None:
        try:
            return call()
        except libvirt.libvirtError as exc:
            if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            with libvirt_errors(f"look up {what}"):
                raise

    def close(self) -> None:
        """Close; a connection that is already dead is closed as well."""
        with libvirt_errors(f"close the connection to {self.uri}"):
            self._conn.close()
