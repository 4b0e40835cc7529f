"""Asking: which blocks has the source side asked the target about, to send only the parts that differ?

A block that was asked about is still open in the plan. It goes back there, with what the answer says, or as it was when
the answer cannot come any more; then it is read again. So nothing is remembered but the item, and of these no more than
may be under way (S12).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from understudy.model.extent import PART
from understudy.mover.frames import unpack_parts
from understudy.mover.parts import narrowed
from understudy.mover.plan import ReadBlock
from understudy.units import block_count


class Asking:
    """What was asked on all lanes of a transfer and is not answered.

    :param under_way: hears how many bytes of blocks more, or less, wait for answers.
    :param give_back: gets items that are to be taken again.
    """

    def __init__(self, under_way: Callable[[int], None], give_back: Callable[[Sequence[ReadBlock]], None]) -> None:
        self._under_way = under_way
        self._give_back = give_back
        self._changed = threading.Condition()
        self._heard = False
        self._asked: dict[int, tuple[int, ReadBlock]] = {}

    def ask(self, slot: int, item: ReadBlock, timeout_s: float) -> bool:
        """``item`` is about to be asked about on lane ``slot``; False if nobody hears answers, not even soon."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._heard, timeout_s):
                return False
            self._asked[item.index] = (slot, item)
        self._under_way(item.block.length)
        return True

    def answered(self, index: int, payload: bytes | memoryview) -> None:
        """The target has answered. It may be an answer that we gave up waiting for: it is as good, or not needed.

        :raises TransferError: if the answer makes no sense.
        """
        with self._changed:
            _, item = self._asked.get(index, (0, None))
            if item is None:
                return
            parts = unpack_parts(payload, block_count(item.block.length, PART))
            del self._asked[index]
        self._return([item], [narrowed(item, parts)])

    def heard(self) -> None:
        """What is asked from now on is answered on a connection to which somebody listens."""
        with self._changed:
            self._heard = True
            self._changed.notify_all()

    def unheard(self) -> None:
        """The connection of answers is lost: what was asked is to be asked again."""
        with self._changed:
            self._heard = False
            items = [item for _, item in self._asked.values()]
            self._asked.clear()
        self._return(items, items)

    def lost(self, slot: int) -> bool:
        """Lane ``slot`` lost its connection: what was asked there is to be asked again; whether that was anything."""
        with self._changed:
            items = [item for asked_on, item in self._asked.values() if asked_on == slot]
            for item in items:
                del self._asked[item.index]
        self._return(items, items)
        return bool(items)

    def _return(self, asked: Sequence[ReadBlock], items: Sequence[ReadBlock]) -> None:
        self._under_way(-sum(item.block.length for item in asked))
        self._give_back(items)
