"""Inviting a proxy: an invitation, an enrolment server that waits for it, and the token that names both."""

from __future__ import annotations

import enum
import fcntl
import hmac
import socket
import ssl
import struct
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from understudy.controller.authority import Authorities
from understudy.controller.database import Database
from understudy.controller.invitations import make_invitation, withdraw_invitation
from understudy.controller.records import InvitedProxy, ProxyWish
from understudy.errors import MoverError
from understudy.model.address import Address, parse_address
from understudy.mover.listeners import place_of
from understudy.mover.token import Token
from understudy.signing import fingerprint

ENROLMENT_PORT = 7341
START_TIMEOUT_S = 30.0
_PROBE_TIMEOUT_S = 5.0
_POLL_S = 0.1
_SIOCGIFADDR = 0x8915


def invite(home: Path, database: Database, wish: ProxyWish, start_server: Callable[[], None]) -> InvitedProxy:
    """Make an invitation, and return when the enrolment server waits for who has its token.

    :param start_server: starts a process that serves enrolment of this home, or waits for its turn to do so.
    :raises MoverError: if the server cannot wait there; the invitation is withdrawn then.
    """
    what = f"invite proxy {wish.name!r}"
    address = parse_address(what, wish.controller or _bracketed(primary_address()), ENROLMENT_PORT)
    expected = fingerprint(Authorities(home).enrolment().read_bytes())
    invitation = make_invitation(database, wish.name, wish.host, wish.slots, wish.valid_s, address)
    try:
        place = place_of(address)
        _refuse_taken(what, place, expected)
        start_server()
        _wait_for_server(what, place, expected, home)
    except BaseException:
        withdraw_invitation(database, invitation)
        raise
    token = Token(str(address), invitation.id, invitation.secret, expected)
    return InvitedProxy(wish.name, token.text(), invitation.expires_at, str(address))


def primary_address() -> str:
    """The address of this machine that others most likely reach: that of the default route, else any, else loopback."""
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            # Choosing a route sends nothing.
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return next((address for address in _interface_addresses() if not address.startswith("127.")), "127.0.0.1")


def _interface_addresses() -> list[str]:
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no IPv4 address
            found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Probe(enum.Enum):
    NOBODY = enum.auto()
    OURS = enum.auto()
    OTHER = enum.auto()


def _probe(place: Address, expected: str) -> _Probe:
    """Who answers at a place of this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        connection = socket.create_connection((place.host or "localhost", place.port), _PROBE_TIMEOUT_S)
    except OSError:
        return _Probe.NOBODY
    try:
        with connection, context.wrap_socket(connection) as sock:
            certificate = sock.getpeercert(binary_form=True) or b""
    except OSError:
        return _Probe.OTHER
    found = sha256(certificate).hexdigest()
    return _Probe.OURS if hmac.compare_digest(found, expected) else _Probe.OTHER


def _refuse_taken(what: str, place: Address, expected: str) -> None:
    if _probe(place, expected) is _Probe.OTHER:
        raise MoverError(what, f"port {place.port} of this machine is taken by another program",
                         "choose another one with --controller ADDRESS:PORT")


def _wait_for_server(what: str, place: Address, expected: str, home: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while _probe(place, expected) is not _Probe.OURS:
        if time.monotonic() > deadline:
            raise MoverError(what, f"the enrolment server does not answer on port {place.port} of this machine",
                             f"see {home / 'log' / 'enrolment.log'} and {home / 'log' / 'understudy.log'}")
        time.sleep(_POLL_S)
