"""Proxies on other hosts: talking to them, and renewing their certificates while doing so."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from understudy.controller.authority import Authorities
from understudy.controller.database import Database
from understudy.controller.proxies import record_certificate
from understudy.errors import UnderstudyError
from understudy.model.address import parse_address
from understudy.model.job import Proxy
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.mover.endpoints import TlsEndpoint
from understudy.signing import Validity, validity_of

LOG = logging.getLogger(__name__)


class RemoteProxy:
    """A proxy service that answered, and whose certificate has been renewed if it was due.

    :ivar clock_skew_s: seconds that its clock is ahead of ours.
    """

    def __init__(self, proxy: Proxy, authorities: Authorities, database: Database) -> None:
        """:raises MoverError: if it does not answer, or is not who it should be."""
        self._proxy = proxy
        self.client = MoverClient(endpoint_of(proxy, authorities))
        try:
            facts = self.client.call(api.IdentityQuery(), api.IdentityFacts)
            self.clock_skew_s = facts.clock - time.time()
            self._validity = Validity(_moment(facts.starts_at), _moment(facts.ends_at))
            self._renew_if_due(authorities)
            record_certificate(database, proxy.name, proxy.identity, self.expires)
        except BaseException:
            self.close()
            raise

    @property
    def expires(self) -> str:
        """When its certificate ends, ISO 8601 in UTC."""
        return self._validity.ends.isoformat(timespec="seconds")

    def serves(self, proxy: Proxy) -> bool:
        """Whether this is still the way to ``proxy`` as the configuration has it now, with time left to renew."""
        same = (proxy.identity, proxy.control_address) == (self._proxy.identity, self._proxy.control_address)
        return same and not self._validity.is_due(datetime.now(UTC))

    def close(self) -> None:
        """Close all connections."""
        self.client.close()

    def _renew_if_due(self, authorities: Authorities) -> None:
        """A renewal that fails is tried again the next time: there are months until it matters."""
        if not self._validity.is_due(datetime.now(UTC)):
            return
        try:
            request = self.client.call(api.RequestCertificate(), api.CertificateRequest)
            certificate = authorities.sign_proxy(request.pem.encode(), self._proxy.identity)
            self.client.call(api.InstallCertificate(certificate.decode()), api.Nothing)
        except UnderstudyError as exc:
            LOG.warning("certificate of proxy %r, valid until %s, was not renewed: %s",
                        self._proxy.name, self.expires, exc)  # fmt: skip
        else:
            self._validity = validity_of(certificate)
            LOG.info("certificate of proxy %r renewed until %s", self._proxy.name, self.expires)


def endpoint_of(proxy: Proxy, authorities: Authorities) -> TlsEndpoint:
    """Where a proxy service answers to this controller.

    :raises DatabaseError: if the controller's own credentials cannot be used.
    """
    address = parse_address(f"proxy {proxy.name!r}", proxy.control_address)
    return TlsEndpoint(address, proxy.identity, authorities.controller())


def make_forget(proxy: Proxy, authorities: Authorities) -> bool:
    """Tell a proxy service that was removed to destroy its credentials; whether it heard that."""
    try:
        with MoverClient(endpoint_of(proxy, authorities)) as client:
            client.call(api.ForgetController(), api.Nothing)
    except UnderstudyError as exc:
        LOG.warning("proxy %r was removed and could not be told: %s", proxy.name, exc)
        return False
    return True


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
