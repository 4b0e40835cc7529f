"""Below: what does a layer in the making lie on? The base point's content, read block by block when it is asked for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Protocol, Self

from understudy.errors import TransferError, UnderstudyError
from understudy.mover import api
from understudy.nbd import NbdClient

LOG = logging.getLogger(__name__)

POLL_S = 0.2
READ_TIMEOUT_S = 30.0
#: An image that fails so often is not tried again: each time costs a server that is started anew.
MOST_FAILURES = 8


class Content(Protocol):
    """What the layers below show; for use by several threads."""

    def read(self, offset: int, view: memoryview) -> bool:
        """Fill ``view`` with what is there from ``offset`` on; whether that was possible.

        It shows zeros where the disk had ended.
        """

    def stop(self) -> None:
        """Reads end at once, from now on."""


class Below:
    """The content of an image that nobody writes to, over one connection that is made when it is needed first.

    :param serve: serves the image for as long as it is read.
    """

    def __init__(self, serve: Callable[[], AbstractContextManager[api.NbdSource]]) -> None:
        self._serve = serve
        self._lock = threading.Lock()
        self._open = ExitStack()
        self._client: NbdClient | None = None
        self._failures = 0
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def read(self, offset: int, view: memoryview) -> bool:
        """Fill ``view``; False if that failed, now or too often before. Why is logged."""
        with self._lock:
            if self._failures >= MOST_FAILURES or self._stopped:
                return False
            try:
                self._fill(self._client or self._connect(), offset, view)
            except UnderstudyError as exc:
                # One that cannot even be served does not get better soon.
                self._failures = self._failures + 1 if self._client is not None else MOST_FAILURES
                self._shut()
                if not self._stopped:
                    LOG.warning("what a layer lies on cannot be read, whole blocks are written instead: %s", exc)
                return False
            return True

    def stop(self) -> None:
        """Reads end at once, from now on."""
        self._stopped = True

    def close(self) -> None:
        """Stop, and serve the image no more."""
        self.stop()
        with self._lock:
            self._shut()

    def _connect(self) -> NbdClient:
        where = self._open.enter_context(self._serve())
        self._client = client = NbdClient(where.socket, where.export)
        self._open.callback(client.close)
        return client

    def _fill(self, client: NbdClient, offset: int, view: memoryview) -> None:
        length = max(0, min(len(view), client.size - offset))
        view[length:] = bytes(len(view) - length)
        if not length:
            return
        cookie = client.start_read(view[:length], offset)
        deadline = time.monotonic() + READ_TIMEOUT_S
        while not client.finished(cookie):
            if self._stopped or time.monotonic() > deadline:
                raise TransferError(f"read {client.name} at {offset}", f"no answer within {READ_TIMEOUT_S:.0f} s")
            client.poll(POLL_S)

    def _shut(self) -> None:
        self._client = None
        self._open.close()
