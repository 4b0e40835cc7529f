"""Answering: which parts of a block does the replica have otherwise? The target side's answers, by a thread of its own.

Reading the base point takes its time, and must not hold up what comes on the connections meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from understudy.errors import TransferError
from understudy.mover.below import Content
from understudy.mover.frames import Geometry
from understudy.mover.parts import different_digests, every_part, part_digests

#: An honest source side never waits for so many answers; another one has to wait itself.
MOST_WAITING = 4096


@dataclass(frozen=True, slots=True)
class Ask:
    """A question.

    :ivar sender: which source side asks: no other one is to hear the answer.
    :ivar digests: of the parts of the block at ``offset``, as the source has them.
    """

    sender: str
    offset: int
    digests: bytes


class Answering:
    """Answers what is asked, in a thread that begins with the first question and ends with :meth:`end`.

    :param content: what the layer in the making lies on, or None.
    :param say: sends the answer: the question, and the set of parts that differ.
    :param failed: hears of a defect.
    """

    def __init__(self, geometry: Geometry, content: Content | None, say: Callable[[Ask, int], None],
                 failed: Callable[[TransferError], None]) -> None:
        self._geometry = geometry
        self._content = content
        self._say = say
        self._failed = failed
        self._changed = threading.Condition()
        self._asks: deque[Ask] = deque()
        self._thread: threading.Thread | None = None
        self._ended = False

    def put(self, ask: Ask) -> None:
        """Have this answered soon; after the end, never."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._asks) < MOST_WAITING)
            if self._ended:
                return
            self._asks.append(ask)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="answering", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more is answered; at return the base is not read any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            thread = self._thread
        if self._content is not None:
            self._content.stop()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        view = memoryview(bytearray(self._geometry.block_size))
        try:
            while (ask := self._next()) is not None:
                self._say(ask, self._different(ask, view))
        except Exception as exc:  # noqa: BLE001 - whoever waits for the answer must hear of it
            self._failed(TransferError("compare with the base point", f"internal error: {exc!r}"))

    def _next(self) -> Ask | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._asks)
            if self._ended:
                return None
            self._changed.notify_all()
            return self._asks.popleft()

    def _different(self, ask: Ask, view: memoryview) -> int:
        block = view[: min(len(view), self._geometry.size - ask.offset)]
        if self._content is None or not self._content.read(ask.offset, block):
            return every_part(len(block))
        return different_digests(ask.digests, part_digests(block))
