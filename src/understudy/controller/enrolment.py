"""Enrolment: inviting a proxy, and turning an invited host into one - in one transaction, once."""

from __future__ import annotations

import ipaddress
import logging

from understudy.certificates import CONTROLLERS_CA, PROXIES_CA
from understudy.controller.authority import Authorities
from understudy.controller.catalog import MAX_SLOTS, refuse_taken
from understudy.controller.clock import now_iso
from understudy.controller.database import Database
from understudy.controller.invitations import refusal
from understudy.controller.schema import InvitationRow, ProxyRow
from understudy.errors import UsageError
from understudy.model.address import Address, parse_address
from understudy.model.job import ProxyKind
from understudy.mover.api import Enrolled, EnrolmentRequest
from understudy.mover.listeners import parse_listen
from understudy.signing import new_proxy_identity, validity_of

LOG = logging.getLogger(__name__)
_WHAT = "enrol a proxy"


def admit(database: Database, authorities: Authorities, request: EnrolmentRequest, peer: str) -> Enrolled:
    """Make the host behind ``request`` the proxy that it was invited to be.

    :param peer: the address from which it came.
    :raises Refused: if the invitation cannot be used, or the proxy's name is taken meanwhile.
    :raises UsageError: if the signing request or an address is none.
    """
    with database.transaction() as session:
        # Locked: of two hosts with the same token the second finds the invitation used.
        row = session.get(InvitationRow, request.invitation, with_for_update=True)
        problem = refusal(row, request.secret)
        if row is not None and problem is None:
            refuse_taken(session, ProxyRow, row.name, _WHAT)
            proxy, answer = _admitted(row, authorities, request, peer)
            row.used_at = now_iso()
            session.add(proxy)
    # Raised after the transaction: a wrong secret has been counted.
    if problem is not None:
        LOG.warning("enrolment from %s (%r) refused: %s", peer, request.host_name, problem.why)
        raise problem
    LOG.info("proxy %r enrolled: host %r, %s", answer.name, request.host_name, answer.identity)
    return answer


def _admitted(
    row: InvitationRow, authorities: Authorities, request: EnrolmentRequest, peer: str
) -> tuple[ProxyRow, Enrolled]:
    if not 1 <= request.cores <= MAX_SLOTS:
        raise UsageError(_WHAT, f"the host says that it has {request.cores} cores")
    identity = new_proxy_identity()
    certificate = authorities.sign_proxy(request.request.encode(), identity)
    trusted = {name: content.decode() for name, content in authorities.certificates().items()}
    proxy = ProxyRow(
        name=row.name, host=row.host, slots=row.slots or request.cores, kind=ProxyKind.SERVICE.value,
        identity=identity, control_address=_reached_at(request.control_address, peer),
        data_address=_reached_at(request.data_address, peer),
        certificate_expires=validity_of(certificate).ends.isoformat(timespec="seconds"),
    )  # fmt: skip
    return proxy, Enrolled(row.name, identity, certificate.decode(), trusted[PROXIES_CA], trusted[CONTROLLERS_CA])


def _reached_at(said: str, peer: str) -> str:
    """The address that the host said, or with its port the one that it came from."""
    address = parse_listen(_WHAT, said)
    if not address.host:
        address = Address(_plain(peer), address.port)
    return str(parse_address(_WHAT, str(address)))


def _plain(peer: str) -> str:
    """An IPv4 address as such, also when it came over a socket for both."""
    try:
        mapped = ipaddress.IPv6Address(peer).ipv4_mapped
    except ValueError:
        return peer
    return str(mapped) if mapped is not None else peer
