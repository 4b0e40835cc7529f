"""Listeners: sockets on which a mover waits for the controller and for other movers."""

from __future__ import annotations

import logging
import socket
import threading
import time

from understudy.certificates import Credentials
from understudy.errors import MoverError
from understudy.model.address import Address, parse_address
from understudy.mover.state import Mover

LOG = logging.getLogger(__name__)
_BACKLOG = 128
#: Linux (ip(7)); the socket module has no name for it. An address may be given before the network is up.
_IP_FREEBIND = 15
_PATIENCE_S, _RETRY_S = 60.0, 0.5


def listen(address: Address) -> socket.socket:
    """A listening socket; without a host it takes connections to every address of this machine, IPv4 and IPv6.

    :raises MoverError: if the port is taken, or the address cannot be used.
    """
    try:
        if not address.host:
            return _listen_everywhere(address.port)
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        return _bound(family, where)
    except OSError as exc:
        raise MoverError(f"listen on {address}", str(exc.strerror or exc),
                         "choose another address, or end the program that uses it") from exc


def place_of(address: Address) -> Address:
    """Where to listen for hosts that come to ``address``: there, or everywhere if it is not of this machine."""
    try:
        found = socket.getaddrinfo(address.host, 0, type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.bind(found[0][4])
    except OSError:
        return Address("", address.port)
    return address


def open_data_listeners(mover: Mover, data_listen: str) -> None:
    """Begin to take data connections of other movers on ``data_listen``, ``HOST:PORT`` or ``:PORT``.

    :raises UsageError: if it is no address.
    :raises MoverError: if it cannot be listened on, or this proxy has no credentials.
    """
    if not data_listen:
        return
    what = f"proxy {mover.name!r}"
    if mover.credentials is None:
        raise MoverError(what, "without credentials it can take no data from other hosts", "enrol it")
    address, credentials = parse_listen(what, data_listen), mover.credentials
    try:
        mover.data.accept_tls(listen(address), credentials)
    except MoverError as exc:
        # The child of a controller that was killed may hold the port for a moment.
        LOG.warning("%s; trying again", exc)
        threading.Thread(target=_listen_later, args=(mover, address, credentials), name="listen", daemon=True).start()


def _listen_later(mover: Mover, address: Address, credentials: Credentials) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        time.sleep(_RETRY_S)
        try:
            mover.data.accept_tls(listen(address), credentials)
        except MoverError as exc:
            if time.monotonic() > deadline:
                LOG.warning("no data is taken from other hosts: %s", exc)
                return
        else:
            return


def parse_listen(what: str, text: str) -> Address:
    """An address to listen on: as any other, but the host may be left out.

    :raises UsageError: if it is none.
    """
    if not text.startswith(":"):
        return parse_address(what, text)
    return Address("", parse_address(what, f"localhost{text}").port)


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=_BACKLOG)


def _bound(family: int, where: object) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listener.bind(where)  # type: ignore[arg-type] # what getaddrinfo says for this family
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
