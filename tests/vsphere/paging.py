"""Paging: answers of the property collector with as many objects as the client wants at once.

The simulator ignores the number, and does not know the call for the next page. Which numbers and tokens a real vCenter
chooses is its affair: a client that believes what it is told meets here what it must cope with.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable

from tests.vsphere import soap
from tests.vsphere.front import Front

_OBJECT = re.compile(rb"<objects>.*?</objects>", re.DOTALL)
_FIRST, _NEXT = b"RetrievePropertiesExResponse", b"ContinueRetrievePropertiesExResponse"


class Pages:
    """Pages that wait until they are asked for, by token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._waiting: dict[str, bytes] = {}

    def first(self, body: bytes, most: int) -> bytes:
        """The first page of an answer of RetrievePropertiesEx; the others wait."""
        objects = list(_OBJECT.finditer(body))
        if len(objects) <= most:
            return body
        head, tail = body[: objects[0].start()], body[objects[-1].end() :]
        groups = [objects[at : at + most] for at in range(0, len(objects), most)]
        with self._lock:
            tokens = [f"page-{next(self._tokens)}" for _ in groups[1:]]
            marks = [*(f"<token>{token}</token>".encode() for token in tokens), b""]
            pages = [b"".join([head, *(found[0] for found in group), mark, tail])
                     for group, mark in zip(groups, marks, strict=True)]  # fmt: skip
            self._waiting.update(zip(tokens, pages[1:], strict=True))
        return pages[0]

    def next(self, token: str) -> bytes | None:
        """The page that waits for that token; None if there is none, or it was asked for before."""
        with self._lock:
            page = self._waiting.pop(token, None)
        return None if page is None else page.replace(_FIRST, _NEXT)


def page_answers(vcenter: Front) -> None:
    """Make a front give answers in pages."""
    pages, handle = Pages(), vcenter._gateway.handle

    def paged(request: soap.Request, forward: Callable[[], soap.Answer]) -> soap.Answer:
        if request.method == "ContinueRetrievePropertiesEx" and (page := pages.next(request.text("token") or "")):
            return soap.Answer(200, page)
        answer = handle(request, forward)
        most = request.text("options", "maxObjects") if request.method == "RetrievePropertiesEx" else None
        return soap.Answer(answer.status, pages.first(answer.body, int(most))) if most else answer

    vcenter._gateway.handle = paged
