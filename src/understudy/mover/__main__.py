"""The mover process: ``python -m understudy.mover --socket PATH --name NAME --state-dir DIR``.

It ends when its standard input does: whoever started it holds the other end of the pipe, so a killed controller ends
its movers, and with them their locks and qemu-nbd children.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from understudy.certificates import Credentials
from understudy.mover.ending import End, serve_until_told
from understudy.mover.listeners import open_data_listeners
from understudy.mover.operations import load_all
from understudy.mover.server import IDLE_TIMEOUT_S, make_app
from understudy.mover.state import Mover

LOG = logging.getLogger(__name__)
#: Most sessions are over by then, and need not wait for operations that none of them asks for.
LOAD_ALL_AFTER_S = 120.0


def main() -> None:
    """Serve until standard input ends or SIGTERM comes."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    credentials = Credentials(arguments.credentials) if arguments.credentials else None
    mover = Mover.make(arguments.name, arguments.state_dir, arguments.socket.parent, credentials, arguments.identity)
    listener = _listen(arguments.socket)
    open_data_listeners(mover, arguments.data_listen)
    config = uvicorn.Config(make_app(mover), log_config=None, access_log=False, lifespan="off", ws="none",
                            timeout_keep_alive=IDLE_TIMEOUT_S)  # fmt: skip
    server = uvicorn.Server(config)
    end = End(mover, lambda: _remove_socket(arguments.socket))
    threading.Thread(target=_end_with_stdin, args=(end,), name="stdin", daemon=True).start()
    _load_all_later()
    serve_until_told(server, listener, end)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="understudy proxy", description=__doc__)
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--state-dir", required=True, type=Path)
    parser.add_argument("--credentials", type=Path, help="directory of the credentials for other hosts")
    parser.add_argument("--identity", default="", help="name in the certificate of the credentials")
    parser.add_argument("--data-listen", default="", help="address for data connections from other hosts")
    return parser


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


def _end_with_stdin(end: End) -> None:
    """Wait for the end of standard input, then end at once: nobody is left who could ask for something."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    LOG.info("standard input ended: ending")
    end.tidy()
    os._exit(0)


def _load_all_later() -> None:
    timer = threading.Timer(LOAD_ALL_AFTER_S, load_all)
    timer.daemon = True
    timer.start()


def _remove_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    # Whoever started us may be dead, and nobody else knows this directory. One that holds more is not ours.
    with contextlib.suppress(OSError):
        path.parent.rmdir()


if __name__ == "__main__":
    main()
