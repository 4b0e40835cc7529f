"""The proxies of this machine as child processes of the controller: started on demand, ended with it."""

from __future__ import annotations

import shutil
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from understudy.mover.client import MoverClient
from understudy.mover.process import MoverProcess


class MoverPool:
    """Movers by proxy name; one that died is started again when it is asked for."""

    def __init__(self, home: Path) -> None:
        """:param home: digest copies go below ``proxies/``, logs below ``log/``."""
        self._home = home
        self._run_dirs: list[Path] = []
        self._movers: dict[str, Future[MoverProcess]] = {}
        # Dead ones that were started again; tasks may still have their clients, so they are closed at the end.
        self._replaced: list[Future[MoverProcess]] = []
        self._lock = threading.Lock()
        self._starter = ThreadPoolExecutor(4, "start-proxy")

    def start(self, name: str) -> Future[MoverProcess]:
        """Begin to start a proxy, unless it runs; returns at once."""
        with self._lock:
            known = self._movers.get(name)
            if known is None or (known.done() and (known.exception() is not None or not known.result().alive)):
                self._replaced += [known] if known is not None else []
                known = self._movers[name] = self._starter.submit(self._launch, name, self._next_run_dir())
            return known

    def get(self, name: str) -> MoverClient:
        """A client of the proxy, started if need be.

        :raises MoverError: if it does not start.
        """
        return self.start(name).result().client

    def close(self) -> None:
        """End all proxies."""
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

    def _next_run_dir(self) -> Path:
        """A new directory for a proxy's sockets: short, because a socket's path has at most 107 bytes."""
        self._run_dirs.append(Path(tempfile.mkdtemp(prefix="understudy-")))
        return self._run_dirs[-1]

    def _launch(self, name: str, run_dir: Path) -> MoverProcess:
        plain = quote(name, safe=" ")
        return MoverProcess(name, run_dir, self._home / "proxies" / plain, self._home / "log" / f"proxy-{plain}.log")
