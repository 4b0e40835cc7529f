"""The end of a proxy service whose connections are in every state."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.unit.controller.service_lab import enrolled, running
from understudy.certificates import PROXIES_CA
from understudy.controller.authority import Authorities


def test_a_service_ends_well_while_a_client_keeps_a_closed_connection(tmp_path: Path) -> None:
    authorities = Authorities(tmp_path / "home")
    with running(enrolled(tmp_path / "far", authorities)) as service:
        context = authorities.controller().client_context(PROXIES_CA)
        with (
            socket.create_connection(("127.0.0.1", service.port), 10) as plain,
            context.wrap_socket(plain, server_hostname=service.proxy.identity, suppress_ragged_eofs=True) as tls,
        ):
            # The service closes its end after the answer, and waits for the client, which does not listen any more.
            tls.sendall(b"GET /nowhere HTTP/1.1\r\nHost: far\r\nConnection: close\r\n\r\n")
            assert tls.recv(12) == b"HTTP/1.1 404"
            assert service.end() == 0, service.said()
