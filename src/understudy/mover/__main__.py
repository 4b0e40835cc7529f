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

from understudy.mover.server import make_app
from understudy.mover.state import Mover

LOG = logging.getLogger(__name__)
END_TIMEOUT_S = 20.0


def main() -> None:
    """Serve until standard input ends or SIGTERM comes."""
    parser = argparse.ArgumentParser(prog="understudy proxy", description=__doc__)
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--state-dir", required=True, type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    mover = Mover.make(arguments.name, arguments.state_dir, arguments.socket.parent)
    listener = _listen(arguments.socket)
    config = uvicorn.Config(make_app(mover), log_config=None, access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    end = _End(mover, arguments.socket)
    threading.Thread(target=end.with_stdin, name="stdin", daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        end.tidy()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


class _End:
    """The end of the process, by a signal or with standard input; what it holds is given back once."""

    def __init__(self, mover: Mover, path: Path) -> None:
        self._mover = mover
        self._path = path
        self._once = threading.Lock()
        self._done = False

    def with_stdin(self) -> None:
        """Wait for the end of standard input, then end at once: nobody is left who could ask for something."""
        while os.read(sys.stdin.fileno(), 4096):
            pass
        LOG.info("standard input ended: ending")
        self.tidy()
        os._exit(0)

    def tidy(self) -> None:
        """Stop all work, give locks and exports back, remove the socket."""
        with self._once:
            if self._done:
                return
            self._done = True
            # Locks of a mover that hangs would block the next one.
            timer = threading.Timer(END_TIMEOUT_S, os._exit, (1,))
            timer.daemon = True
            timer.start()
            self._mover.close()
            self._path.unlink(missing_ok=True)
            # Whoever started us may be dead, and nobody else knows this directory. One that holds more is not ours.
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()


if __name__ == "__main__":
    main()
