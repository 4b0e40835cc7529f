"""Resources: tasks wait here until everything they need is free at once, so that none holds anything while it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from understudy.context import Context
from understudy.controller.choice import Route
from understudy.controller.ledger import Claim, Kind, Ledger, Resource

_WAIT_S = 0.2
# How often a task that waits looks at the configuration and at the proxies again.
_RENEW_S = 5.0


class TaskSlots:
    """What a task holds: it may take more disks as slots get free. For use by the task's thread.

    :ivar route: the proxies that were chosen.
    """

    def __init__(self, pool: ResourcePool, ticket: int, claim: Claim, route: Route) -> None:
        self.route = route
        self._pool = pool
        self._ticket = ticket
        self._claim = claim
        self._first = True
        self._disks = 1

    def take(self) -> str:
        """Empty: one more disk may run now; else what is in its way, in words.

        For the first disk everything is held already. Who was refused is expected to ask again, or to end.
        """
        if self._first:
            self._first = False
            return ""
        obstacle = self._pool.one_more(self._ticket, self._claim, self.route)
        self._disks += not obstacle
        return obstacle

    def give_back(self) -> None:
        """A disk has ended."""
        self._disks -= 1
        self._pool.give_back(self._claim.disk(self.route))

    def end(self) -> None:
        """Give everything back."""
        disks = [self._claim.disk(self.route)] * self._disks
        self._disks = 0
        self._pool.leave(self._ticket)
        self._pool.give_back(*self._claim.stages, *disks)


class ResourcePool:
    """The ledger of one controller, shared by the threads of its tasks."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._changed = threading.Condition()

    def offer(self, limits: Mapping[Resource, int]) -> None:
        """Set limits, or change them: who holds more than a lowered limit keeps it until it ends."""
        with self._changed:
            self._ledger.set_limits(limits)
            self._changed.notify_all()

    @contextmanager
    def reserve(
        self, ctx: Context, claim: Callable[[], Claim], waiting: Callable[[str], None]
    ) -> Iterator[TaskSlots]:
        """Wait until everything that the claim names is free at the same moment; hold it while the context lasts.

        :param claim: what is needed; asked again every few seconds of a wait, because the configuration may change.
        :param waiting: told why the task waits, and an empty text when the wait is over.
        :raises Cancelled: if the operator ends the wait.
        """
        slots = self._begin(ctx, claim, waiting)
        try:
            yield slots
        finally:
            slots.end()

    @contextmanager
    def alone(self, vm: str) -> Iterator[bool]:
        """Inside the context no task works on the VM; False if one does already, or waits for it."""
        resource = Resource(Kind.VM, vm)
        with self._changed:
            taken = self._ledger.take_idle(resource)
        try:
            yield taken
        finally:
            if taken:
                self.give_back(frozenset({resource}))

    def one_more(self, ticket: int, claim: Claim, route: Route) -> str:
        """For :class:`TaskSlots`."""
        with self._changed:
            return self._ledger.one_more(ticket, claim, route)

    def give_back(self, *held: frozenset[Resource]) -> None:
        """For :class:`TaskSlots`."""
        with self._changed:
            for resources in held:
                self._ledger.give_back(resources)
            self._changed.notify_all()

    def leave(self, ticket: int) -> None:
        """For :class:`TaskSlots`: nothing is waited for any more."""
        with self._changed:
            self._ledger.leave(ticket)
            self._changed.notify_all()

    def _begin(self, ctx: Context, claim: Callable[[], Claim], waiting: Callable[[str], None]) -> TaskSlots:
        with self._changed:
            ticket = self._ledger.ticket()
        told = ""
        try:
            wanted, renewed = claim(), time.monotonic()
            while isinstance(answer := self._try(ticket, wanted, told), str):
                if answer != told:
                    waiting(told := answer)
                ctx.check()
                if time.monotonic() - renewed > _RENEW_S:
                    wanted, renewed = claim(), time.monotonic()
        except BaseException:
            self.leave(ticket)
            raise
        if told:
            waiting("")
        return TaskSlots(self, ticket, wanted, answer)

    def _try(self, ticket: int, wanted: Claim, told: str) -> Route | str:
        """The route, or what is missing; waits a moment if that was told before."""
        with self._changed:
            answer = self._ledger.begin(ticket, wanted)
            if answer == told:
                self._changed.wait(_WAIT_S)
            return answer
