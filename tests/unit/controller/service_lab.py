"""Proxy services as real processes on loopback, enrolled without the enrolment server, for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from understudy.context import Context
from understudy.controller.authority import Authorities
from understudy.controller.remote import endpoint_of
from understudy.errors import MoverError
from understudy.model.job import Proxy, ProxyKind
from understudy.mover.api import About, MoverInfo
from understudy.mover.client import MoverClient
from understudy.mover.settings import ServiceSettings, StateDir
from understudy.signing import Validity, new_proxy_identity

START_TIMEOUT_S = 60.0


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Service:
    """A proxy service whose state directory is ``path``; it may be started and ended again and again."""

    path: Path
    proxy: Proxy
    authorities: Authorities
    process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where the control server listens."""
        return int(self.proxy.control_address.rpartition(":")[2])

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.path / "log").open("ab") as log:
            self.process = subprocess.Popen(serve_command(self.path), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        with self.client() as client:
            assert Context().wait_until(lambda: self._answers(client), START_TIMEOUT_S), self.said()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def client(self) -> MoverClient:
        """A client with the controller's credentials."""
        return MoverClient(endpoint_of(self.proxy, self.authorities))

    def said(self) -> str:
        """Its log."""
        return (self.path / "log").read_text()

    def _answers(self, client: MoverClient) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        try:
            return client.call(About(), MoverInfo).identity == self.proxy.identity
        except MoverError:
            return False


def serve_command(path: Path) -> list[str]:
    """The command that is the service."""
    return [sys.executable, "-m", "understudy", "proxy", "serve", "--state-dir", str(path)]


def enrolled(path: Path, authorities: Authorities, name: str = "far", validity: Validity | None = None) -> Service:
    """A state directory as ``proxy enrol`` makes it, not started."""
    identity, control = new_proxy_identity(), f"127.0.0.1:{free_port()}"
    path.mkdir(mode=0o700)
    authorities.issue_proxy(path / "credentials", identity, validity)
    StateDir(path).save(ServiceSettings(name, identity, control, ""))
    proxy = Proxy(name, "", 2, ProxyKind.SERVICE, identity, control, "127.0.0.1:1")
    return Service(path, proxy, authorities)


@contextmanager
def running(service: Service) -> Iterator[Service]:
    """The service, running inside the block."""
    try:
        service.start()
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            os.kill(service.process.pid, signal.SIGKILL)
            service.process.wait()
