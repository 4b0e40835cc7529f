"""The enrolment server: HTTPS for invited hosts, for as long as an invitation is open. Nobody else is served."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from understudy.controller.authority import Authorities
from understudy.controller.database import Database
from understudy.controller.enrolment import admit
from understudy.controller.invitations import open_addresses
from understudy.errors import DatabaseError, MoverError, NotFound, Refused, UnderstudyError, UsageError
from understudy.model.address import Address, parse_address
from understudy.mover.api import EnrolmentRequest
from understudy.mover.enrol import LONGEST_BODY, PATH
from understudy.mover.listeners import listen, place_of
from understudy.mover.protocol import decode, encode
from understudy.mover.server import JSON, STATUS_CODES
from understudy.mover.work import error_fields

LOG = logging.getLogger(__name__)
POLL_S = 0.3
RETRY_S = 3.0
#: An enrolment takes a second; a connection that is still there after this is ended.
CONNECTION_S = 30.0
_TOLD = (UsageError, NotFound, Refused)


def serve_enrolment(home: Path, database: Database) -> None:
    """Serve until no invitation is open. One process of a home does; another one waits for its end, then looks again,
    so that there is no gap in which an invitation is not served.

    :raises DatabaseError: if the lock or the certificates cannot be made.
    """
    with _turn(home):
        while addresses := open_addresses(database):
            authorities = Authorities(home)
            listeners = _listeners(addresses)
            if listeners:
                complete = len(listeners) == len(_places(addresses))
                _serve(make_app(database, authorities), authorities, listeners,
                       _Watch(database, addresses, None if complete else RETRY_S))  # fmt: skip
            else:
                time.sleep(RETRY_S)


def make_app(database: Database, authorities: Authorities) -> Starlette:
    """The application: one operation, which makes an invited host a proxy."""

    async def enrol(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST_BODY:
                return _failure(UsageError("enrol a proxy", f"the request is longer than {LONGEST_BODY} bytes"))
        peer = request.client.host if request.client else ""
        return await run_in_threadpool(_answer, database, authorities, bytes(body), peer)

    return Starlette(routes=[Route(PATH, enrol, methods=["POST"])])


def _answer(database: Database, authorities: Authorities, body: bytes, peer: str) -> Response:
    try:
        return Response(encode(admit(database, authorities, decode(EnrolmentRequest, body), peer)), media_type=JSON)
    except Exception as exc:  # noqa: BLE001 - the border of the process: everything becomes an answer
        return _failure(exc)


def _failure(exc: Exception) -> Response:
    """An answer; what went wrong inside the controller is for its log only."""
    if not isinstance(exc, _TOLD):
        LOG.error("enrolment failed", exc_info=exc)
        exc = UnderstudyError("enrol a proxy", "the controller failed", "see its log")
    fields = error_fields(exc)
    return Response(encode(fields), status_code=STATUS_CODES.get(fields.code, 500), media_type=JSON)


class _BriefConnection(H11Protocol):
    """A connection that ends after a time, whatever its client does or does not."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._end = asyncio.get_running_loop().call_later(CONNECTION_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        super().connection_lost(exc)


class _Watch:
    """When to stop serving: when what is invited has changed."""

    def __init__(self, database: Database, addresses: frozenset[str], limit_s: float | None) -> None:
        self._database = database
        self._addresses = addresses
        self._until = None if limit_s is None else time.monotonic() + limit_s

    def wait(self, ended: threading.Event) -> None:
        """Return when the addresses of open invitations are others, the time is up, or ``ended`` is set."""
        while not ended.wait(POLL_S):
            if self._until is not None and time.monotonic() > self._until:
                return
            try:
                if open_addresses(self._database) != self._addresses:
                    return
            except UnderstudyError as exc:
                LOG.warning("open invitations cannot be read: %s", exc)


def _serve(app: Starlette, authorities: Authorities, listeners: list[socket.socket], watch: _Watch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(authorities.enrolment())
    config = uvicorn.Config(
        app, http=_BriefConnection, log_config=None, access_log=False, lifespan="off", ws="none",
        ssl_context_factory=lambda _config, _default: context, timeout_graceful_shutdown=5,
        proxy_headers=False, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    ended = threading.Event()

    def stop() -> None:
        watch.wait(ended)
        server.should_exit = True

    watcher = threading.Thread(target=stop, name="watch-invitations")
    watcher.start()
    try:
        server.run(sockets=listeners)
    finally:
        ended.set()
        watcher.join()


def _places(addresses: frozenset[str]) -> set[Address]:
    """Where to listen; a port of every address needs no other listener."""
    places = {place_of(parse_address("invitation", address)) for address in addresses}
    everywhere = {place.port for place in places if not place.host}
    return {place for place in places if not place.host or place.port not in everywhere}


def _listeners(addresses: frozenset[str]) -> list[socket.socket]:
    found = []
    for place in _places(addresses):
        try:
            found.append(listen(place))
        except MoverError as exc:
            LOG.warning("%s", exc)
    return found


@contextmanager
def _turn(home: Path) -> Iterator[None]:
    """Wait until no other process of this home serves enrolment."""
    try:
        handle = os.open(home / "enrolment.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise DatabaseError(f"open {home / 'enrolment.lock'}", str(exc.strerror),
                            "check --home and its permissions") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
