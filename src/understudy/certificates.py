"""Certificates: the files that give a process its identity, and the TLS contexts made of them.

A directory of credentials holds ``key.pem`` (mode 0600, made where it lies), ``certificate.pem``, ``proxies-ca.pem``
(who signs proxies) and ``controllers-ca.pem`` (who signs controllers). Two authorities, so that TLS itself tells a
proxy from a controller: a proxy can never give another proxy orders.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY, CERTIFICATE = "key.pem", "certificate.pem"
PROXIES_CA, CONTROLLERS_CA = "proxies-ca.pem", "controllers-ca.pem"


@dataclass(frozen=True)
class Credentials:
    """A directory of credentials; contexts are made anew from its files, so that a renewed certificate is used."""

    directory: Path

    def server_context(self, clients: str) -> ssl.SSLContext:
        """For accepting connections of those whom the authority in file ``clients`` signed; TLS 1.3 only.

        :raises OSError: if a file is missing; :class:`ssl.SSLError` is one.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without session tickets there is nothing to read on a connection where only the client speaks, and no session
        # outlives its certificate.
        context.num_tickets = 0
        return self._finished(context, clients)

    def client_context(self, servers: str) -> ssl.SSLContext:
        """For connecting to those whom the authority in file ``servers`` signed, by the identity given as host name.

        :raises OSError: if a file is missing; :class:`ssl.SSLError` is one.
        """
        return self._finished(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), servers)

    def _finished(self, context: ssl.SSLContext, peers: str) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.directory / peers)
        context.load_cert_chain(self.directory / CERTIFICATE, self.directory / KEY)
        return context


def peer_identity(sock: ssl.SSLSocket) -> str:
    """The identity in the verified certificate of who is at the other end; empty if it has none."""
    names: Any = (sock.getpeercert() or {}).get("subjectAltName", ())
    return next((str(value) for kind, value in names if kind == "DNS"), "")
