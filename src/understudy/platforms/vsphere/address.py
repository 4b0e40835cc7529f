"""Where a vCenter or an ESXi host is: ``vpx://user@vcenter[:port]/`` or ``esx://user@host[:port]/``."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from understudy.errors import UsageError

VCENTER, ESXI = "vpx", "esx"
SCHEMES = (VCENTER, ESXI)
_PORT = 443
_EXAMPLE = "give e.g. vpx://administrator%40vsphere.local@vcenter.lan/ or esx://root@esxi1.lan/"


@dataclass(frozen=True)
class ServerAddress:
    """A server that speaks the vSphere API.

    :ivar scheme: :data:`VCENTER` or :data:`ESXI`.
    :ivar user: who logs in, or empty if the address does not say.
    """

    scheme: str
    host: str
    port: int = _PORT
    user: str = ""

    @property
    def name(self) -> str:
        """As an operator writes it: without scheme and user, and without the usual port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORT else f"{host}:{self.port}"


def parse_address(uri: str) -> ServerAddress:
    """The server that ``uri`` names. Its text is not repeated: it may hold a password.

    :raises UsageError: if it names none, or holds a password.
    """
    what = "address of a vCenter or ESXi host"
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise UsageError(what, "it cannot be understood", _EXAMPLE) from exc
    if parts.password is not None:
        raise UsageError(what, "it contains a password, and addresses are stored in clear text", "leave it out")
    if parts.scheme not in SCHEMES or not host or port == 0:
        raise UsageError(what, "it names no server", _EXAMPLE)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(what, "it has something after the server's name", _EXAMPLE)
    return ServerAddress(parts.scheme, host, port or _PORT, unquote(parts.username or ""))
