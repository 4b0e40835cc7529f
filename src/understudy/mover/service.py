"""The proxy as a service on another host: its control server speaks mutual TLS 1.3, with its controller only."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
import sys
import tempfile
import threading
import time
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from understudy.certificates import CONTROLLERS_CA
from understudy.errors import MoverError, UnderstudyError
from understudy.mover.ending import End, serve_until_told
from understudy.mover.listeners import listen, open_data_listeners, parse_listen
from understudy.mover.operations import load_all
from understudy.mover.operations_target import release_orphans
from understudy.mover.server import IDLE_TIMEOUT_S, make_app
from understudy.mover.settings import StateDir
from understudy.mover.state import Mover

LOG = logging.getLogger(__name__)
#: Requests that last longer than this after SIGTERM are given up.
GRACE_S = 10
#: How often the service looks for drafts of dead controllers.
LOOK_S = 10.0


def serve(path: Path) -> None:
    """Be the proxy of the state directory ``path`` until SIGTERM, or until the controller removes it.

    :raises NotFound: if this host is not enrolled.
    :raises Refused: if it runs already.
    :raises MoverError: if an address is taken or the credentials cannot be used.
    """
    state_dir = StateDir(path)
    what = "start the proxy"
    with state_dir.alone(what):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s",
                            stream=sys.stderr)  # fmt: skip
        load_all()
        settings = state_dir.settings(what)
        context = _context(state_dir, what)
        run_dir = Path(tempfile.mkdtemp(prefix="understudy-", dir=os.environ.get("RUNTIME_DIRECTORY")))
        try:
            listener = listen(parse_listen(what, settings.control_listen))

            def forget() -> None:
                LOG.info("the controller removed this proxy: ending")
                state_dir.forget()
                server.should_exit = True

            mover = Mover.make(settings.name, path, run_dir, state_dir.credentials, settings.identity, forget)
            config = uvicorn.Config(
                make_app(mover), http=_Connection, log_config=None, access_log=False, lifespan="off", ws="none",
                ssl_context_factory=lambda _config, _default: context, timeout_keep_alive=IDLE_TIMEOUT_S,
                timeout_graceful_shutdown=GRACE_S,
            )  # fmt: skip
            server = uvicorn.Server(config)
            open_data_listeners(mover, settings.data_listen)
            threading.Thread(target=_look_after, args=(mover,), name="orphans", daemon=True).start()
            LOG.info("proxy %r listens on %s", settings.name, settings.control_listen)
            serve_until_told(server, listener, End(mover, lambda: None))
        finally:
            shutil.rmtree(run_dir)
    LOG.info("proxy %r ended", settings.name)


def _look_after(mover: Mover) -> None:
    """A child process ends with its controller; a service has to notice by itself that one died."""
    while True:
        time.sleep(LOOK_S)
        try:
            release_orphans(mover)
        except UnderstudyError as exc:
            LOG.warning("drafts of dead controllers: %s", exc)


class _Connection(H11Protocol):
    """A connection that does not hold up the end of the process when it is idle.

    Closing in order would wait for the other end to agree, and an idle client does not listen.
    """

    def shutdown(self) -> None:
        # A TLS transport of asyncio that is closed twice forgets its protocol, and then cannot be asked anything.
        if not self.transport.is_closing():
            super().shutdown()
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.transport.abort()


def _context(state_dir: StateDir, what: str) -> ssl.SSLContext:
    try:
        return state_dir.credentials.server_context(CONTROLLERS_CA)
    except OSError as exc:
        raise MoverError(what, f"the credentials in {state_dir.credentials.directory} cannot be used: {exc}",
                         "enrol this host again") from exc
