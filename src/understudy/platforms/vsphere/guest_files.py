"""Small files to and from a guest: sent over HTTPS to where the server says, and only if that is the right host.

A vCenter names the ESXi host on which the VM runs, which has a certificate of its own. The vCenter, which has proved
who it is, tells which one; without that it must be trusted as any server. There is no transfer without such a proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from ssl import PEM_cert_to_DER_cert
from urllib.parse import urlsplit

from understudy.errors import GuestError, HostUnreachable
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.trust import ServerConnection, thumbprint, tls_context

# By this name the server means itself.
_SELF = "*"
_HTTPS_PORT = 443
_SILENCE_S = 30.0
_GOOD = (200, 201, 204)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class GuestFiles:
    """Carries out the transfers that the server has allowed."""

    def __init__(self, connection: Connection, host_certificate: Callable[[], Iterable[int]]) -> None:
        """:param host_certificate: what the server says of the certificate of the VM's ESXi host, in PEM or DER."""
        self._connection = connection
        self._host_certificate = host_certificate

    def send(self, what: str, url: str, content: bytes) -> None:
        """Send a file.

        :raises GuestError: if it did not arrive, or the host has not proved who it is; nothing was sent then.
        """
        with self._asked(what, "PUT", url, content):
            pass

    def fetch(self, what: str, url: str, limit: int) -> bytes:
        """The beginning of a file.

        :raises GuestError: if it did not come whole.
        """
        with self._asked(what, "GET", url, b"") as response:
            pieces, left = [], limit
            while left and (piece := response.read(left)):
                pieces.append(piece)
                left -= len(piece)
            if left and response.length:  # http.client takes the end of the connection for the end of the answer
                raise GuestError(what, "the connection ended before the file did")
            return b"".join(pieces)

    @contextmanager
    def _asked(self, what: str, method: str, url: str, content: bytes) -> Iterator[HTTPResponse]:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise GuestError(what, "the server wants the file by another way than HTTPS, which is not taken")
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection = self._connect(parts.hostname, parts.port or _HTTPS_PORT)
        try:
            connection.request(method, target, content or None, {"Content-Length": str(len(content))})
            response = connection.getresponse()
            if response.status not in _GOOD:
                raise GuestError(what, f"{parts.hostname} answers {response.status} to the transfer")
            yield response
        except HostUnreachable as exc:
            # What that error advises is meant for the server that was added as a host.
            raise GuestError(what, f"{exc.what}: {exc.why}",
                             "see that the certificate of the ESXi host is the one that the vCenter knows") from exc
        except (OSError, HTTPException) as exc:
            # Of the address only the host: what follows is as good as a password, for as long as it is valid.
            raise GuestError(what, f"the transfer by {parts.hostname} failed: {type(exc).__name__}: {exc}",
                             "check the network from here to port 443 of the ESXi hosts") from exc  # fmt: skip
        finally:
            connection.close()

    def _connect(self, host: str, port: int) -> ServerConnection:
        address = self._connection.address
        if host == _SELF or (host, port) == (address.host.lower(), address.port):
            return self._connection.another()
        pin = certificate_pin(self._host_certificate())
        return ServerConnection(
            host, port, timeout=_SILENCE_S, context=tls_context(pin), pin=pin, seen=lambda _certificate: None
        )


def certificate_pin(told: Iterable[int]) -> str:
    """SHA-256 of the certificate that the server tells, in PEM or DER; empty if it tells none."""
    # pyVmomi gives bytes, or numbers of which those from 128 on may be below zero.
    data = bytes(number & 0xFF for number in told)
    with suppress(ValueError):
        if found := _PEM.search(data.decode("ascii")):
            return thumbprint(PEM_cert_to_DER_cert(found[0]), "sha256")
    # A sequence with a length of two bytes: nothing shorter is a certificate.
    return thumbprint(data, "sha256") if data[:2] == b"\x30\x82" else ""
