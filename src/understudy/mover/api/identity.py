"""Values of the control protocol about the certificate of a proxy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IdentityQuery:
    """Ask for the certificate in use; see :class:`IdentityFacts`."""


@dataclass(frozen=True)
class IdentityFacts:
    """The certificate in use, and the clock; times in seconds since 1970.

    :ivar identity: the name in it.
    """

    identity: str
    starts_at: float
    ends_at: float
    clock: float


@dataclass(frozen=True)
class RequestCertificate:
    """Make a new key, keep it beside the one in use, and ask for a certificate for it."""


@dataclass(frozen=True)
class CertificateRequest:
    """A signing request, PEM."""

    pem: str


@dataclass(frozen=True)
class InstallCertificate:
    """The certificate for the last request, PEM: use it for every new connection. Refused if it is any other."""

    pem: str


@dataclass(frozen=True)
class ForgetController:
    """The controller removed this proxy: destroy the credentials and end."""


@dataclass(frozen=True)
class EnrolmentRequest:
    """What a host sends to the controller that invited it, over a connection whose other end it knows by fingerprint.

    :ivar request: signing request, PEM.
    :ivar control_address: ``HOST:PORT`` where the controller reaches it, ``:PORT`` for "where this comes from".
    :ivar data_address: the same for other proxies.
    """

    invitation: str
    secret: str
    request: str
    host_name: str
    cores: int
    control_address: str
    data_address: str


@dataclass(frozen=True)
class Enrolled:
    """The controller's answer: who the host is now, and whom it trusts; certificates as PEM."""

    name: str
    identity: str
    certificate: str
    proxies_ca: str
    controllers_ca: str
