"""Gateway: the HTTPS server before the simulator. It lets sessions in, and cuts, refuses, and passes on.

Calls go to `handle`; everything else (REST, files of datastores, uploads) is passed on as it comes, in pieces.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from pyVmomi import vim

from tests.vsphere import soap
from tests.vsphere.scripted import LONGEST_HOLD_S, Faults, Kind
from tests.vsphere.simulator import Simulator

_PIECE = 1024 * 1024
_COOKIE = "vmware_soap_session"
#: What only concerns one connection, and what we say ourselves.
_NOT_PASSED_ON = {
    "connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding", "date", "server"
}  # fmt: skip
#: What a client may ask before it has logged in.
_WITHOUT_SESSION = {"RetrieveServiceContent", "Login", "LoginByToken", "LoginExtensionByCertificate", "CloneSession"}

#: How a connection ends when the other side, or a simulator that has panicked, goes away.
_GONE = (ConnectionError, ssl.SSLError, http.client.HTTPException)

Handle = Callable[[soap.Request, Callable[[], soap.Answer]], soap.Answer]


class Gateway:
    """A server at a port of 127.0.0.1 of its own; `start` and `close` it."""

    def __init__(self, simulator: Simulator, context: ssl.SSLContext, faults: Faults, handle: Handle) -> None:
        self.simulator = simulator
        self.faults = faults
        self.handle = handle
        self.sessions: set[str] = set()
        self.calls: list[str] = []
        self.end_sessions: Callable[[list[str]], None] = lambda keys: None
        self.transfer: Callable[[str, str, bytes], tuple[int, bytes]] = lambda method, path, body: (404, b"")
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.gateway = self
        # The handshake is the connection's own affair, in its thread: a client that stalls holds nobody up.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )  # fmt: skip
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="vcenter-front")

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def close(self) -> None:
        """End all connections and the server; wait until they have ended."""
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()

    def cut_connections(self) -> None:
        """End all connections that clients have now."""
        self._server.end_connections()

    def expire_sessions(self) -> None:
        """Every client has to log in again."""
        ended, self.sessions = sorted(self.sessions), set()
        self.end_sessions(ended)

    def admitted(self, request: soap.Request, session: str) -> bool:
        """Whether the call is allowed with this session."""
        if request.method in _WITHOUT_SESSION or (request.method == "Fetch" and request.kind == "ServiceInstance"):
            return True
        if session in self.sessions and self.faults.sessions_expire_now():
            self.expire_sessions()
        return session in self.sessions

    def may_read_files(self, session: str, authorization: str) -> bool:
        """Whether a request for a file is allowed: with a session, or with user and password."""
        pair = f"{self.simulator.user}:{self.simulator.password}".encode()
        return session in self.sessions or authorization == f"Basic {base64.b64encode(pair).decode()}"


class _Server(ThreadingHTTPServer):
    gateway: Gateway
    daemon_threads = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[socket.socket] = set()
        self._upstream: set[http.client.HTTPConnection] = set()
        self._guard = threading.Lock()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._guard:
                self._open.discard(request)

    def asks(self, upstream: http.client.HTTPConnection) -> None:
        """A connection asks the simulator by `upstream`."""
        with self._guard:
            self._upstream.add(upstream)

    def asks_no_more(self, upstream: http.client.HTTPConnection) -> None:
        """That connection has ended."""
        with self._guard:
            self._upstream.discard(upstream)

    def end_connections(self) -> None:
        """End also those that wait: for a client, or for an answer of the simulator that may never come."""
        with self._guard:
            asked = [upstream.sock for upstream in self._upstream if upstream.sock is not None]
            for connection in (*self._open, *asked):
                # It may have ended by itself.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go away at any time; a defect of ours ends the thread, and pytest fails the test for it."""
        exc = sys.exception()
        if exc is not None and not isinstance(exc, _GONE):
            raise exc


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._gateway = self.server.gateway
        address = urlsplit(self._gateway.simulator.url)
        self._upstream = http.client.HTTPConnection(address.hostname or "", address.port)
        self.server.asks(self._upstream)

    def finish(self) -> None:
        self.server.asks_no_more(self._upstream)
        self._upstream.close()
        super().finish()

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a test that fails shows what it asked."""

    def do_POST(self) -> None:
        if urlsplit(self.path).path in ("/sdk", "/sdk/vimService"):
            self._call(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        else:
            self._pass_on()

    def do_GET(self) -> None:
        self._pass_on()

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _call(self, body: bytes) -> None:
        request, gateway = soap.parsed(body), self._gateway
        gateway.calls.append(request.method)
        if (hold := gateway.faults.take(Kind.STALLED, request.method)) is not None:
            hold.released.wait(LONGEST_HOLD_S)
        if gateway.faults.take(Kind.UNAVAILABLE, request.method) is not None:
            self._send(503, [("Content-Type", "text/plain")], b"Service unavailable")
            return
        headers: list[tuple[str, str]] = [("Content-Type", 'text/xml; charset="utf-8"')]

        def forward() -> soap.Answer:
            response, answer = self._simulated(body)
            headers[:] = _passed(response)
            return soap.Answer(response.status, answer)

        if gateway.admitted(request, self._session()):
            answer = gateway.handle(request, forward)
        else:
            answer = soap.refused(
                vim.fault.NotAuthenticated(
                    object=vim.ManagedEntity(request.moref), privilegeId="System.View",
                    msg="The session is not authenticated.",
                )
            )  # fmt: skip
        self._keep_session(request, answer, headers)
        cut = gateway.faults.take(Kind.DROPPED, request.method) is not None
        self._send(answer.status, headers, answer.body, cut=cut)

    def _keep_session(self, request: soap.Request, answer: soap.Answer, headers: list[tuple[str, str]]) -> None:
        if request.method == "Logout":
            self._gateway.sessions.discard(self._session())
        for name, value in headers:
            if name.lower() == "set-cookie" and answer.status == 200 and value.startswith(f"{_COOKIE}="):
                self._gateway.sessions.add(_unquoted(value.partition("=")[2].partition(";")[0]))

    def _session(self) -> str:
        for part in self.headers.get("Cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == _COOKIE:
                return _unquoted(value)
        return ""

    def _simulated(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        self._upstream.request(self.command, self.path, body, self._passed_headers())
        response = self._upstream.getresponse()
        return response, response.read()

    def _passed_headers(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}

    def _pass_on(self) -> None:
        """Pass on what is no call."""
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._send(411, [], b"")
            return
        length = int(self.headers.get("Content-Length", 0))
        if self.path.startswith("/guestFile"):
            status, body = self._gateway.transfer(self.command, self.path, self.rfile.read(length))
            self._send(status, [("Content-Type", "application/octet-stream")], body)
            return
        if self.path.startswith("/folder") and not self._gateway.may_read_files(
            self._session(), self.headers.get("Authorization", "")
        ):
            for _ in _pieces(self.rfile, length):
                pass  # a client reads no answer before it has sent all
            self._send(401, [("WWW-Authenticate", 'Basic realm="vCenter"')], b"")
            return
        headers = {**self._passed_headers(), "Content-Length": str(length)}
        self._upstream.request(self.command, self.path, _pieces(self.rfile, length), headers)
        response = self._upstream.getresponse()
        self.send_response(response.status)
        for name, value in _passed(response):
            self.send_header(name, value)
        if (size := response.headers.get("Content-Length")) is None:
            whole = response.read()
            size = str(len(whole))
        else:
            whole = b""
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(whole)
        while piece := response.read(_PIECE):
            self.wfile.write(piece)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)


def _passed(response: http.client.HTTPResponse) -> list[tuple[str, str]]:
    return [(name, value) for name, value in response.getheaders() if name.lower() not in _NOT_PASSED_ON]


def _pieces(file: Any, length: int) -> Any:
    while length > 0:
        piece = file.read(min(length, _PIECE))
        if not piece:
            return
        length -= len(piece)
        yield piece


def _unquoted(value: str) -> str:
    return value.strip().strip('"')
