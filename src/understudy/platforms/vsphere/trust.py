"""Whether a server is the one we mean: TLS connections that prove it before anything is sent over them.

pyVmomi has a thumbprint of its own, but looks at it only when the authorities that the machine trusts did not accept
the certificate, and not at all on its next connections. So each connection is checked here.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from http.client import HTTPSConnection
from typing import Any

from cryptography import x509

from understudy.errors import HostUnreachable, UsageError
from understudy.model.access import ServerCertificate

_SHA256_DIGITS = 64


class ServerConnection(HTTPSConnection):
    """A connection to a server that has proved to be the right one."""

    def __init__(self, *args: Any, pin: str, seen: Callable[[bytes], None], **named: Any) -> None:
        """:param pin: SHA-256 of the certificate as :func:`pinned` gives it; empty: the context has checked it.

        :param seen: is told each certificate that was accepted.
        """
        super().__init__(*args, **named)
        self._pin = pin
        self._seen = seen

    def connect(self) -> None:
        """Connect, and close again if it is not the right server.

        :raises HostUnreachable: if it is not.
        """
        try:
            super().connect()
            self._check(self.sock.getpeercert(True) or b"")
        except ssl.SSLCertVerificationError as exc:
            self.close()
            raise HostUnreachable(
                f"server {self.host}", f"its certificate is not trusted: {exc.verify_message}",
                "confirm it (understudy host set HOST --thumbprint SHA256), or give it one of a trusted authority",
            ) from exc  # fmt: skip
        except BaseException:
            self.close()
            raise

    def _check(self, certificate: bytes) -> None:
        shown = thumbprint(certificate, "sha256")
        if self._pin and shown != self._pin:
            raise HostUnreachable(
                f"server {self.host}", f"its certificate is {shown}, and {self._pin} was confirmed",
                f"find out why; if it has got a new one: understudy host set HOST --thumbprint {shown}",
            )  # fmt: skip
        self._seen(certificate)


def thumbprint(certificate: bytes, algorithm: str) -> str:
    """Digest of a certificate in DER: capital hexadecimal pairs with colons."""
    return hashlib.new(algorithm, certificate).digest().hex(":").upper()


def pinned(text: str) -> str:
    """A SHA-256 thumbprint in the one form that is compared; empty if there is none.

    :raises UsageError: if ``text`` is none. A pin that cannot match must not look as if there were none.
    """
    digits = text.replace(":", "").strip().upper()
    if not text:
        return ""
    if len(digits) != _SHA256_DIGITS or any(digit not in "0123456789ABCDEF" for digit in digits):
        raise UsageError("thumbprint of a server", "it is no SHA-256 digest", "give 32 hexadecimal pairs with colons")
    return ":".join(digits[at : at + 2] for at in range(0, _SHA256_DIGITS, 2))


def tls_context(pin: str) -> ssl.SSLContext:
    """For :class:`ServerConnection`. With a pin no authority is asked, whatever the environment trusts."""
    if not pin:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def fetch_certificate(host: str, port: int, timeout_s: float = 20.0) -> ServerCertificate:
    """What a server shows on first contact; nothing is sent to it.

    :raises HostUnreachable: if it does not answer, or not by TLS.
    """
    certificates: list[bytes] = []
    untrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    untrusting.check_hostname = False
    untrusting.verify_mode = ssl.CERT_NONE
    try:
        _connect(host, port, timeout_s, untrusting, certificates)
    except OSError as exc:
        why = f"no TLS connection: {exc}"
        raise HostUnreachable(f"server {host}", why, "check the name, the port and the network") from exc
    shown = x509.load_der_x509_certificate(certificates[0])
    return ServerCertificate(
        subject=shown.subject.rfc4514_string(),
        issuer=shown.issuer.rfc4514_string(),
        not_before=shown.not_valid_before_utc.isoformat(),
        not_after=shown.not_valid_after_utc.isoformat(),
        thumbprint=thumbprint(certificates[0], "sha256"),
        trusted=_trusted(host, port, timeout_s, certificates[0]),
    )


def _trusted(host: str, port: int, timeout_s: float, certificate: bytes) -> bool:
    again: list[bytes] = []
    try:
        _connect(host, port, timeout_s, tls_context(""), again)
    except (OSError, HostUnreachable):
        return False
    return again == [certificate]


def _connect(host: str, port: int, timeout_s: float, context: ssl.SSLContext, seen: list[bytes]) -> None:
    connection = ServerConnection(host, port, timeout=timeout_s, context=context, pin="", seen=seen.append)
    connection.connect()
    connection.close()
