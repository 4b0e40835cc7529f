"""Data port: where the source sides of transfers come in, by Unix socket or by TLS, and how each finds its transfer.

Nobody gets past the hello without the ticket of a transfer that is open here; over TLS it must also come from the proxy
whom that ticket was made for. Until then a connection costs one thread, for ten seconds at the most.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from understudy.certificates import PROXIES_CA, Credentials, peer_identity
from understudy.errors import LinkLost, MoverError, NotFound, UnderstudyError
from understudy.mover.frames import FrameType
from understudy.mover.wire import Connection

LOG = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
#: Connections that have not proved who they are, in all and from one address; more are closed at once.
MOST_UNKNOWN = 256
MOST_UNKNOWN_EACH = 32

Secure = Callable[[socket.socket], tuple[socket.socket, str]]


class Receiver(Protocol):
    """A transfer that connections are for."""

    @property
    def source_identity(self) -> str:
        """Who may come; empty for one by Unix socket."""

    def serve(self, connection: Connection, hello: dict[str, object]) -> bool:
        """Take a connection; whether it is kept, else it is used up. An error is told to the other side."""

    def close(self) -> None:
        """Nothing more is accepted."""


@dataclass(frozen=True)
class _Admitted:
    owner: str
    receiver: Receiver


class DataPort:
    """The open tickets, and the listeners on which they may be shown."""

    def __init__(self) -> None:
        self._receivers: dict[str, _Admitted] = {}
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._unknown = _Unknown()
        self._closed = False

    # --- tickets ------------------------------------------------------------------------------------------------------

    def admit(self, owner: str, receiver: Receiver) -> str:
        """Let in who shows the ticket that is returned, until :meth:`withdraw` of its ``owner``."""
        ticket = secrets.token_hex(32)
        with self._lock:
            self._receivers[_key(ticket)] = _Admitted(owner, receiver)
        return ticket

    def withdraw(self, owner: str) -> None:
        """The tickets of ``owner`` are worth nothing any more, and its transfers end."""
        with self._lock:
            ended = {key: item.receiver for key, item in self._receivers.items() if item.owner == owner}
            for key in ended:
                del self._receivers[key]
        for receiver in ended.values():
            receiver.close()

    def _find(self, ticket: str, identity: str) -> Receiver:
        with self._lock:
            admitted = self._receivers.get(_key(ticket))
        if admitted is None or admitted.receiver.source_identity != identity:
            raise NotFound("transfer", "this proxy has none for this ticket", "the proxy may have been restarted")
        return admitted.receiver

    # --- listeners ----------------------------------------------------------------------------------------------------

    def listen_unix(self, path: Path) -> None:
        """Accept proxies of this machine at ``path``, which only this user may open.

        :raises MoverError: if that is not possible.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(64)
        except OSError as exc:
            listener.close()
            raise MoverError(f"listen at {path}", exc.strerror or str(exc)) from exc
        self._accept_from(listener, lambda sock: (sock, ""))

    def accept_tls(self, listener: socket.socket, credentials: Credentials) -> None:
        """Accept proxies of other machines on ``listener``, by mutual TLS."""

        def secured(sock: socket.socket) -> tuple[socket.socket, str]:
            # Made for each connection: the certificate may have been renewed.
            tls = credentials.server_context(PROXIES_CA).wrap_socket(sock, server_side=True)
            return tls, peer_identity(tls)

        self._accept_from(listener, secured)

    def close(self) -> None:
        """Accept nobody any more."""
        self._closed = True
        for listener in self._listeners:
            with suppress(OSError):  # wakes the thread that accepts
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept_from(self, listener: socket.socket, secure: Secure) -> None:
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener, secure), name="accept", daemon=True).start()

    def _accept(self, listener: socket.socket, secure: Secure) -> None:
        while not self._closed:
            try:
                sock, address = listener.accept()
            except OSError as exc:
                if not self._closed:
                    LOG.warning("accept: %s", exc)  # too many open files, for example: it passes
                    time.sleep(0.1)
                continue
            origin = str(address[0]) if isinstance(address, tuple) else ""
            if self._unknown.enter(origin):
                threading.Thread(target=self._greet, args=(sock, origin, secure), name="transfer", daemon=True).start()
            else:
                sock.close()

    def _greet(self, sock: socket.socket, origin: str, secure: Secure) -> None:
        """The life of one connection; whatever it does ends here."""
        try:
            sock.settimeout(HELLO_TIMEOUT_S)
            sock, identity = secure(sock)
        except (OSError, UnderstudyError) as exc:  # ssl.SSLError is one of the former
            LOG.warning("connection from %s refused: %s", origin or "this machine", exc)
            sock.close()
            return
        finally:
            self._unknown.leave(origin)
        connection = Connection(sock)
        kept = False
        try:
            hello = connection.receive_text(FrameType.HELLO)
            kept = self._find(str(hello.get("ticket", "")), identity).serve(connection, hello)
        except LinkLost as exc:
            LOG.info("transfer connection: %s", exc)
        except UnderstudyError as exc:
            LOG.warning("transfer connection of %s refused: %s", identity or "this machine", exc)
            connection.refuse(exc)
        except Exception:
            LOG.exception("a defect ended a transfer connection")
        finally:
            if not kept:
                connection.close()


class _Unknown:
    """Counts connections that have not shown who they are, in all and of each origin."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, origin: str) -> bool:
        """Count one more, unless there are too many."""
        with self._lock:
            if self._counts[origin] >= MOST_UNKNOWN_EACH or self._counts.total() >= MOST_UNKNOWN:
                return False
            self._counts[origin] += 1
            return True

    def leave(self, origin: str) -> None:
        """One less."""
        with self._lock:
            self._counts[origin] -= 1
            if not self._counts[origin]:
                del self._counts[origin]


def _key(ticket: str) -> str:
    # Looking up a digest takes no longer for a ticket that is nearly right.
    return hashlib.sha256(ticket.encode(errors="surrogatepass")).hexdigest()
