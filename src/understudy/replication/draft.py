"""The draft of a new point at the target proxy: held while the task lasts, opened again if that proxy was restarted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from understudy.context import Context
from understudy.errors import Cancelled, DatastoreError, UnderstudyError
from understudy.mover import api
from understudy.replication.site import Site

HEARTBEAT_S = 15.0
#: Told the id of a draft that was opened, makes the target ready for it.
Ready = Callable[[str], None]


def _is_ready(_draft: str) -> None:
    """A target that keeps layers in files needs nothing."""


class HeldDraft:
    """A draft; its id changes when it is opened again.

    :ivar generation: how often it was opened again.
    """

    def __init__(self, site: Site, request: api.BeginPoint, key: str, ready: Ready = _is_ready) -> None:
        """:param ready: called for a draft that was opened again."""
        self.id = key
        self.generation = 0
        self.request = request
        self._site = site
        self._ready = ready
        self._lock = threading.Lock()

    def reopen(self, generation: int) -> None:
        """The proxy does not know the draft of ``generation`` any more: go on with its files, unless that was done.

        :raises Fenced: if another attempt came first.
        """
        with self._lock:
            if generation == self.generation:
                request = api.BeginPoint(
                    self.request.ref, self.request.identity, self.request.attempt, self.request.point_id,
                    self.request.disks, resume=True,
                )
                self.id = self._site.target_mover.call(request, api.DraftOpened).draft
                self._ready(self.id)
                self.generation += 1

    @contextmanager
    def heartbeat(self, ctx: Context) -> Iterator[None]:
        """Inside the context the proxy hears that this controller is alive: it releases the drafts of dead ones."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                try:
                    self._site.target_mover.call(api.DraftQuery(self.id), api.DraftHolding)
                except UnderstudyError as exc:
                    ctx.log(__name__).info("draft %s: %s", self.id, exc)  # whoever needs the proxy will find out too

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()


@contextmanager
def open_draft(
    ctx: Context, site: Site, request: api.BeginPoint, ready: Ready = _is_ready
) -> Iterator[HeldDraft]:
    """A new draft, whose lock keeps every other writer away; see :class:`HeldDraft`."""
    opened = site.target_mover.call(request, api.DraftOpened)
    for done in opened.swept:
        site.journal.warn(f"sweep of the replica: {done}")
    with held_draft(ctx, site, request, opened.draft, ready) as draft:
        ready(draft.id)
        yield draft


@contextmanager
def held_draft(
    ctx: Context, site: Site, request: api.BeginPoint, key: str, ready: Ready = _is_ready
) -> Iterator[HeldDraft]:
    """The draft that is open as ``key``; ended with the context, kept to be continued if the task fails.

    Not after a cancel, for the operator wants it gone; nor when the datastore is full or fails: there it is in the way.
    """
    draft = HeldDraft(site, request, key, ready)
    keep = False
    try:
        with draft.heartbeat(ctx):
            yield draft
    except BaseException as exc:
        keep = not isinstance(exc, Cancelled | DatastoreError)
        raise
    finally:
        try:
            site.target_mover.call(api.ReleaseDraft(draft.id, keep), api.Nothing)
        except UnderstudyError as exc:
            # It must hide no other error, nor undo a point. A proxy that died holds no lock; the next run sweeps.
            site.journal.warn(f"leave replica {request.ref.name!r}: {exc}")
