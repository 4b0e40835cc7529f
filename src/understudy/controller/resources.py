"""Task slots: who may work now. All or nothing, so that no snapshot is held while something else is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from understudy.context import Context
from understudy.replication.site import Lease

_WAIT_S = 0.2


@dataclass(frozen=True)
class Claim:
    """What a task wants: slots on these proxies, one per disk, and a VM for itself."""

    proxies: frozenset[str]
    vm: str
    disks: int


class ResourcePool:
    """The task slots of all proxies of one controller."""

    def __init__(self, slots: Mapping[str, int]) -> None:
        """:param slots: task slots per proxy name."""
        self._free = dict(slots)
        self._vms: set[str] = set()
        self._changed = threading.Condition()

    def offer(self, slots: Mapping[str, int]) -> None:
        """Add proxies that were made meanwhile; those that are known keep their slots."""
        with self._changed:
            for proxy, count in slots.items():
                self._free.setdefault(proxy, count)

    @contextmanager
    def reserve(self, ctx: Context, claim: Claim, waiting: Callable[[str], None]) -> Iterator[Lease]:
        """Wait until the VM is free and every proxy has a slot; then take up to one slot per disk on each.

        :param waiting: told why the task waits, and an empty text when the wait is over.
        :raises Cancelled: if the operator ends the wait.
        """
        count = self._take(ctx, claim, waiting)
        try:
            yield Lease(parallel=count)
        finally:
            with self._changed:
                self._vms.discard(claim.vm)
                for proxy in claim.proxies:
                    self._free[proxy] += count
                self._changed.notify_all()

    def _take(self, ctx: Context, claim: Claim, waiting: Callable[[str], None]) -> int:
        told = ""
        with self._changed:
            while obstacle := self._obstacle(claim):
                if obstacle != told:
                    waiting(told := obstacle)
                self._changed.wait(_WAIT_S)
                ctx.check()
            count = max(1, min(claim.disks, *(self._free[proxy] for proxy in claim.proxies)))
            self._vms.add(claim.vm)
            for proxy in claim.proxies:
                self._free[proxy] -= count
        if told:
            waiting("")
        return count

    def _obstacle(self, claim: Claim) -> str:
        if claim.vm in self._vms:
            return "another task works on the same VM"
        full = [proxy for proxy in sorted(claim.proxies) if self._free[proxy] < 1]
        return f"no free task slot on proxy {full[0]}" if full else ""
