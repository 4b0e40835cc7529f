"""Endpoints: the two ways to reach a mover, and what went wrong on the way, in words for the operator."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from understudy.certificates import PROXIES_CA, Credentials
from understudy.errors import MoverError
from understudy.model.address import Address

#: A host that lost its power answers nothing, not even a refusal: the kernel asks every 10 s and gives up after 50.
_LIVENESS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 50_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
_CHECK = "check that 'understudy proxy serve' runs there, and what is between"
_ENROL_AGAIN = "remove the proxy and enrol its host again, unless a clock is wrong"

# X509_V_ERR_... of OpenSSL's x509_vfy.h
_VERIFY_WORDS = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is of another authority",
    19: "its certificate is of another authority",
    20: "its certificate is of another authority",
    62: "its certificate is that of another proxy",
}


@dataclass(frozen=True)
class UnixEndpoint:
    """A mover on this machine, by its Unix socket."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def client(self, timeout: httpx.Timeout) -> httpx.Client:
        """An HTTP client of this mover."""
        transport = httpx.HTTPTransport(uds=str(self.path))
        return httpx.Client(transport=transport, base_url="http://mover", timeout=timeout, trust_env=False)

    @property
    def extensions(self) -> dict[str, Any]:
        """What each request must carry."""
        return {}

    def check(self, what: str) -> None:
        """See first whether somebody listens: httpcore leaves its socket open when a connection is refused.

        :raises MoverError: if nobody does.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            problem = probe.connect_ex(str(self.path))
        if problem:
            raise MoverError(what, os.strerror(problem), "see its log")

    def error(self, what: str, exc: httpx.HTTPError) -> MoverError:
        """The error for the operator."""
        return MoverError(what, str(exc) or type(exc).__name__, "see its log")


@dataclass(frozen=True)
class TlsEndpoint:
    """A mover that is a service on another host; it must prove that it is ``identity``.

    :ivar credentials: those of the controller.
    """

    address: Address
    identity: str
    credentials: Credentials

    def __str__(self) -> str:
        return str(self.address)

    def client(self, timeout: httpx.Timeout) -> httpx.Client:
        """An HTTP client of this mover.

        :raises MoverError: if the credentials cannot be used.
        """
        try:
            context = self.credentials.client_context(PROXIES_CA)
        except OSError as exc:
            raise MoverError(f"proxy at {self}", f"credentials in {self.credentials.directory}: {exc}",
                             "check --home and its permissions") from exc
        transport = httpx.HTTPTransport(verify=context, socket_options=_LIVENESS)
        return httpx.Client(transport=transport, base_url=f"https://{self.address}", timeout=timeout, trust_env=False)

    @property
    def extensions(self) -> dict[str, Any]:
        """What each request must carry: the name that the certificate is checked for."""
        return {"sni_hostname": self.identity}

    def check(self, what: str) -> None:
        """Nothing to see before a connection is made."""

    def error(self, what: str, exc: httpx.HTTPError) -> MoverError:
        """The error for the operator."""
        for cause in causes(exc):
            if isinstance(cause, ssl.SSLCertVerificationError):
                why = _VERIFY_WORDS.get(cause.verify_code, f"its certificate is refused: {cause.verify_message}")
                return MoverError(what, why, _ENROL_AGAIN)
            if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
                return MoverError(what, f"it refused the controller's certificate ({cause.reason})", _ENROL_AGAIN)
            if isinstance(cause, socket.gaierror):
                return MoverError(what, f"no address of {self.address.host!r} is known ({cause.strerror})",
                                  "check the name, or 'understudy proxy set --control-address'")
        if isinstance(exc, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
            # A server of asyncio that refuses a certificate closes the connection, and no more (Python 3.11).
            return MoverError(what, "it closed the connection without an answer", "if it does so again, it does not"
                              " accept this controller's certificate: enrol its host again; else see its log")
        if isinstance(exc, httpx.TimeoutException):
            return MoverError(what, "it does not answer", _CHECK)
        return MoverError(what, str(exc) or type(exc).__name__, _CHECK)


Endpoint = UnixEndpoint | TlsEndpoint


def causes(exc: BaseException) -> Iterator[BaseException]:
    """``exc``, what caused it, and so on."""
    found: BaseException | None = exc
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
