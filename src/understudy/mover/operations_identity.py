"""Operations about this proxy itself: its versions, its own certificate."""

from __future__ import annotations

import time

from understudy.certificates import Credentials
from understudy.errors import MoverError, Refused
from understudy.mover import api
from understudy.mover.about import about
from understudy.mover.state import Mover


def query_about(mover: Mover, _request: api.About) -> api.MoverInfo:
    """Who answers, with which versions."""
    return about(mover.name, mover.identity)


def query_identity(mover: Mover, _request: api.IdentityQuery) -> api.IdentityFacts:
    """Which certificate is in use, and until when."""
    credentials = _credentials(mover)
    validity = credentials.validity()
    return api.IdentityFacts(
        credentials.identity(), validity.starts.timestamp(), validity.ends.timestamp(), time.time()
    )


def request_certificate(mover: Mover, _request: api.RequestCertificate) -> api.CertificateRequest:
    """Make a new key beside the one in use."""
    try:
        return api.CertificateRequest(_credentials(mover).request().decode())
    except OSError as exc:
        raise MoverError("ask for a certificate", f"the new key cannot be kept: {exc.strerror}") from exc


def install_certificate(mover: Mover, request: api.InstallCertificate) -> api.Nothing:
    """Use the certificate for the key that was made last."""
    try:
        _credentials(mover).install(request.pem.encode())
    except OSError as exc:
        raise MoverError("install a certificate", f"it cannot be kept: {exc.strerror or exc}") from exc
    return api.Nothing()


def forget_controller(mover: Mover, _request: api.ForgetController) -> api.Nothing:
    """Destroy the credentials, and end."""
    if mover.forget is None:
        raise Refused("forget the controller", "this proxy is a child process of the controller")
    mover.forget()
    return api.Nothing()


def _credentials(mover: Mover) -> Credentials:
    if mover.credentials is None:
        raise Refused(f"certificate of proxy {mover.name!r}", "it has none")
    return mover.credentials
