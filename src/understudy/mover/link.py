"""Link: how the source side of one transfer reaches the target side, now and after it was lost."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable

from understudy.certificates import PROXIES_CA, Credentials
from understudy.errors import LinkLost, NotFound, TransferError
from understudy.mover import api
from understudy.mover.frames import FrameType
from understudy.mover.meter import Meter
from understudy.mover.wire import Connection

CONNECT_TIMEOUT_S = 10.0
#: Who never was connected is told so soon: more likely the address is wrong than the network down.
FIRST_PATIENCE_S = 60.0
RETRY_S = 1.0

Hello = dict[str, object]


class Link:
    """The way to the target side; :meth:`redirect` changes it while connections are lost and made.

    :param credentials: who we are; None for a proxy that only reaches others on this machine.
    :param patience_s: how long to try to get a lost connection back, in seconds.
    """

    def __init__(
        self, target: api.TargetAddress, credentials: Credentials | None, patience_s: float, meter: Meter
    ) -> None:
        self._target = target
        self.credentials = credentials
        self._patience_s = patience_s
        self._meter = meter
        self._reached = False
        self._fruitless_since: float | None = None
        self._changed = threading.Condition()

    def redirect(self, target: api.TargetAddress) -> None:
        """The target side is there now."""
        with self._changed:
            self._target = target
            self._changed.notify_all()

    def lost(self) -> None:
        """A connection is lost with what was under way on it."""
        with self._changed:
            if self._fruitless_since is None:
                self._fruitless_since = time.monotonic()

    def arrived(self) -> None:
        """Something was acknowledged: what is lost from now on is another matter."""
        with self._changed:
            self._fruitless_since = None

    def connect(self, check: Callable[[], None], hello: Hello) -> tuple[Connection, Hello]:
        """A connection whose ``hello`` was welcomed, and the welcome; tries again until patience is at its end.

        :param check: called between tries; ends them by raising.
        :raises LinkLost: if none could be made for so long, or if for so long all that were made were lost before
            anything arrived.
        :raises UnderstudyError: why the other side, or its certificate, was refused.
        """
        self._check_fruitless()
        began = time.monotonic()
        while True:
            check()
            with self._changed:
                target = self._target
            try:
                connection, welcome = self._try(target, hello)
            except (LinkLost, NotFound) as exc:
                self._wait(target, time.monotonic() - began, exc)
            else:
                self._reached = True
                self._meter.waiting = ""
                return connection, welcome

    def _try(self, target: api.TargetAddress, hello: Hello) -> tuple[Connection, Hello]:
        connection = dial(target, self.credentials)
        try:
            connection.send_text(FrameType.HELLO, {**hello, "ticket": target.ticket})
            return connection, connection.receive_text(FrameType.WELCOME)
        except BaseException:
            connection.close()
            raise

    def _check_fruitless(self) -> None:
        with self._changed:
            target, since = self._target, self._fruitless_since
            fruitless_s = 0.0 if since is None else time.monotonic() - since
            if fruitless_s <= self._patience_s:  # at once the first time, then with pauses that grow
                self._changed.wait_for(lambda: self._target is not target, min(fruitless_s, RETRY_S))
        if fruitless_s > self._patience_s:
            raise LinkLost(f"send to the target proxy at {target.address}",
                           f"connections are made and lost, and nothing has arrived for {fruitless_s:.0f} s",
                           "check the network between the proxies: firewalls, and whether large packets pass")

    def _wait(self, target: api.TargetAddress, waited_s: float, why: LinkLost | NotFound) -> None:
        patience_s = self._patience_s if self._reached else min(self._patience_s, FIRST_PATIENCE_S)
        if waited_s > patience_s:
            raise LinkLost(f"connect to the target proxy at {target.address}",
                           f"no connection for {waited_s:.0f} s: {why.why}", "check the network between the proxies")
        self._meter.waiting = f"no connection to the target proxy since {waited_s:.0f} s: {why.why}"
        with self._changed:
            self._changed.wait_for(lambda: self._target is not target, RETRY_S)


def dial(target: api.TargetAddress, credentials: Credentials | None) -> Connection:
    """Connect to a data port; the connection gives up after 10 s without an answer until it is about a disk.

    :raises LinkLost: if nobody answers.
    :raises TransferError: if the other side is not whom it should be.
    """
    what = f"connect to the target proxy at {target.address}"
    try:
        if target.address.startswith("/"):
            return Connection(_dial_unix(target.address))
        if credentials is None:
            raise TransferError(what, "this proxy has no certificate", "enrol it")
        return Connection(_dial_tls(target, credentials))
    except ssl.SSLCertVerificationError as exc:
        raise TransferError(what, f"its certificate is refused: {exc.verify_message}",
                            "check which proxy has this address; enrol it again if its certificate expired") from exc
    except OSError as exc:
        raise LinkLost(what, exc.strerror or str(exc)) from exc


def _dial_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_TIMEOUT_S)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def _dial_tls(target: api.TargetAddress, credentials: Credentials) -> socket.socket:
    host, _, port = target.address.rpartition(":")
    plain = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S)
    try:
        context = credentials.client_context(PROXIES_CA)
        return context.wrap_socket(plain, server_hostname=target.identity)
    except OSError:
        plain.close()
        raise
