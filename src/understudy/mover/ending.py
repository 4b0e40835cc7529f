"""Ending: how a mover process serves until it is told to end, and gives back what it holds."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from understudy.mover.state import Mover

END_TIMEOUT_S = 20.0


class End:
    """The end of the process; what it holds is given back once."""

    def __init__(self, mover: Mover, tidy_files: Callable[[], None]) -> None:
        """:param tidy_files: removes what the process leaves in its run directory, last."""
        self._mover = mover
        self._tidy_files = tidy_files
        self._once = threading.Lock()
        self._done = False

    def tidy(self) -> None:
        """Stop all work, give locks and exports back, remove files."""
        with self._once:
            if self._done:
                return
            self._done = True
            # Locks of a mover that hangs would block the next one.
            timer = threading.Timer(END_TIMEOUT_S, os._exit, (1,))
            timer.daemon = True
            timer.start()
            self._mover.close()
            self._tidy_files()


def serve_until_told(server: uvicorn.Server, listener: socket.socket, end: End) -> None:
    """Serve until SIGTERM, SIGINT or ``server.should_exit``, then give everything back. SIGHUP does nothing."""

    def note(_number: int, _frame: FrameType | None) -> None:
        # The server stops by handlers of its own, and passes the signal on when it has. It must not end the process.
        server.should_exit = True

    # Functions, not SIG_IGN, which children would inherit.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note if number != signal.SIGHUP else lambda _number, _frame: None)
    try:
        server.run(sockets=[listener])
    finally:
        end.tidy()
