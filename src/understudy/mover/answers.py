"""Answers: on which connection does the target side of a transfer speak, and to whom?"""

from __future__ import annotations

import threading

from understudy.errors import LinkLost, UnderstudyError
from understudy.mover.frames import Frame, FrameType
from understudy.mover.wire import Connection


class Answers:
    """The connection of answers, whichever it is now; for use by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Held while something is said.
        self._speaking = threading.Lock()
        self._connection: Connection | None = None
        self._sender = ""
        self._ended = False

    @property
    def connected(self) -> bool:
        """Whether there is one."""
        return self._connection is not None

    def begin(self, connection: Connection, sender: str) -> bool:
        """From now on the source side ``sender`` hears answers on ``connection``, which is told there first.

        So whoever heard that hears every answer to what it asks then. False: nothing is answered any more.

        :raises LinkLost: if the connection is gone.
        """
        with self._speaking:
            connection.send(Frame(FrameType.SETTLED))
            with self._lock:
                if self._ended:
                    return False
                before, self._connection, self._sender = self._connection, connection, sender
        if before is not None:
            before.close()
        return True

    def say(self, sender: str, frame: Frame, payload: bytes) -> None:
        """Send that, if the source side ``sender`` listens."""
        with self._speaking:
            with self._lock:
                connection = self._connection if self._sender == sender else None
            if connection is None:
                return
            try:
                connection.send(frame, payload, payload)
            except LinkLost:
                self._forget(connection)

    def look(self) -> None:
        """See whether the connection still stands: nothing may be to be said for long, so nothing else would tell."""
        connection = self._connection
        if connection is not None and connection.broken():
            self._forget(connection)

    def end(self, failure: UnderstudyError | None) -> None:
        """Nothing more is said but ``failure``, if there is one."""
        with self._lock:
            self._ended = True
            connection, self._connection = self._connection, None
        if connection is not None:
            with self._speaking:
                if failure is not None:
                    connection.refuse(failure)
                connection.close()

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            if self._connection is connection:
                self._connection = None
        connection.close()
