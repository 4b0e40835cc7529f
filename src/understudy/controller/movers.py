"""The proxies of a controller: child processes on this machine, started on demand, and services on other hosts."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from understudy.controller import catalog, lock
from understudy.controller.database import Database
from understudy.model.address import parse_address
from understudy.model.job import Proxy, ProxyKind
from understudy.mover.client import MoverClient
from understudy.mover.process import MoverProcess

if TYPE_CHECKING:
    from understudy.controller.authority import Authorities
    from understudy.controller.remote import RemoteProxy

# What makes certificates is imported in the threads that start proxies: loading it takes 0.1 s.


class MoverPool:
    """Movers by proxy name; one that died is started again when it is asked for."""

    def __init__(self, home: Path, database: Database) -> None:
        """:param home: digest copies and credentials go below ``proxies/``, logs below ``log/``."""
        self._home = home
        self._database = database
        self._run_dirs: list[Path] = []
        self._movers: dict[str, Future[MoverProcess | RemoteProxy]] = {}
        # Dead ones that were started again; tasks may still have their clients, so they are closed at the end.
        self._replaced: list[Future[MoverProcess | RemoteProxy]] = []
        self._lock = threading.Lock()
        self._starter = ThreadPoolExecutor(4, "start-proxy")

    def start(self, name: str) -> Future[MoverProcess | RemoteProxy]:
        """Begin to start a proxy, or to connect to it, unless that is done; returns at once.

        :raises NotFound: if there is no such proxy.
        """
        proxy = catalog.get_proxy(self._database, name)
        with self._lock:
            known = self._movers.get(name)
            if known is None or (known.done() and not _is_good(known, proxy)):
                self._replaced += [known] if known is not None else []
                known = self._movers[name] = self._begin(proxy)
            return known

    def get(self, name: str) -> MoverClient:
        """A client of the proxy, which is started if need be.

        :raises NotFound: if there is no such proxy.
        :raises MoverError: if it does not start, or does not answer.
        """
        return self.start(name).result().client

    def close(self) -> None:
        """End all child processes, and the connections to services."""
        self._starter.shutdown(wait=True)
        with self._lock:
            for mover in (*self._movers.values(), *self._replaced):
                if mover.exception() is None:
                    mover.result().close()
            self._movers.clear()
            self._replaced.clear()
            for run_dir in self._run_dirs:
                if run_dir.exists():  # a proxy that was killed could not remove its own
                    shutil.rmtree(run_dir)
            self._run_dirs.clear()

    def _begin(self, proxy: Proxy) -> Future[MoverProcess | RemoteProxy]:
        if proxy.kind is ProxyKind.SERVICE:
            return self._starter.submit(self._connect, proxy)
        return self._starter.submit(self._launch, proxy, self._next_run_dir())

    def _next_run_dir(self) -> Path:
        """A new directory for a proxy's sockets: short, because a socket's path has at most 107 bytes."""
        self._run_dirs.append(Path(tempfile.mkdtemp(prefix="understudy-")))
        return self._run_dirs[-1]

    def _connect(self, proxy: Proxy) -> RemoteProxy:
        from understudy.controller.remote import RemoteProxy

        return RemoteProxy(proxy, self._authorities(), self._database)

    def _launch(self, proxy: Proxy, run_dir: Path) -> MoverProcess:
        from understudy.controller.proxies import child_identity, record_certificate

        plain = quote(proxy.name, safe=" ")
        state_dir = self._home / "proxies" / plain
        identity = proxy.identity or child_identity(self._database, proxy.name)
        credentials = self._authorities().proxy(state_dir / "credentials", identity)
        expires = credentials.validity().ends.isoformat(timespec="seconds")
        if expires != proxy.certificate_expires:
            record_certificate(self._database, proxy.name, identity, expires)
        log = self._home / "log" / f"proxy-{plain}.log"
        return MoverProcess(proxy.name, run_dir, state_dir, log, credentials, identity, self._data_listen(proxy))

    def _data_listen(self, proxy: Proxy) -> str:
        """Where a child takes data from other hosts.

        Only a child of the controller does. A command such as ``proxy check`` starts one of its own, which must not
        take the port away.
        """
        if not proxy.data_address or lock.holder(self._home) != os.getpid():
            return ""
        address = parse_address(f"proxy {proxy.name!r}", proxy.data_address)
        return str(address) if address.is_loopback else f":{address.port}"

    def _authorities(self) -> Authorities:
        from understudy.controller.authority import Authorities

        return Authorities(self._home)


def _is_good(known: Future[MoverProcess | RemoteProxy], proxy: Proxy) -> bool:
    """Whether a proxy that was started can be used still."""
    if known.exception() is not None:
        return False
    mover = known.result()
    return mover.alive if isinstance(mover, MoverProcess) else mover.serves(proxy)
