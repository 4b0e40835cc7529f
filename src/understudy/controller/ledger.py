"""Ledger: who holds which resources, and who comes next. Pure but for its own books; no locks, no waiting."""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from understudy.controller.choice import Route, best_route


class Kind(enum.Enum):
    """What is limited."""

    VM = "vm"
    SNAPSHOT = "snapshot"
    SLOT = "slot"
    TRANSFER = "transfer"


@dataclass(frozen=True)
class Resource:
    """One thing with a limit: a VM, snapshots on a source datastore, slots of a proxy, transfers to a datastore."""

    kind: Kind
    name: str


@dataclass(frozen=True)
class Claim:
    """What a task needs before it may begin.

    :ivar vm: the VM, for itself alone.
    :ivar places: source datastores, each with one more open snapshot.
    :ivar datastore: the target datastore, with one more transfer.
    :ivar routes: proxies with a slot for the first disk; one of these routes is enough.
    """

    vm: str
    places: frozenset[str]
    datastore: str
    routes: tuple[Route, ...]

    @property
    def stages(self) -> tuple[frozenset[Resource], ...]:
        """What it needs besides proxies, in the order in which it contends for it."""
        places = frozenset(Resource(Kind.SNAPSHOT, place) for place in self.places)
        return frozenset({Resource(Kind.VM, self.vm)}), places

    def disk(self, route: Route) -> frozenset[Resource]:
        """What one disk needs on a route."""
        slots = {Resource(Kind.SLOT, route.source), Resource(Kind.SLOT, route.target)}
        return frozenset({*slots, Resource(Kind.TRANSFER, self.datastore)})


@dataclass(frozen=True)
class _Want:
    """What somebody waits for: every stage, and one of the choices."""

    stages: tuple[frozenset[Resource], ...]
    choices: Mapping[Route, frozenset[Resource]]


class Ledger:
    """The books of one controller.

    Everybody who asks has a ticket. Who cannot have everything gets nothing and keeps the place of the ticket. What
    those with earlier tickets wait for is set aside for them, unit by unit: others overtake only with what is left.
    A task contends stage by stage: while another one works on its VM, it keeps nobody from the proxies. So nobody is
    overtaken for ever, and nobody waits for something that lies idle for a task that cannot begin anyway.
    """

    def __init__(self) -> None:
        self._limits: dict[Resource, int] = {}
        self._used: Counter[Resource] = Counter()
        self._wants: dict[int, _Want] = {}
        self._tickets = itertools.count(1)

    def set_limits(self, limits: Mapping[Resource, int]) -> None:
        """Set limits or change them; what has none is for one at a time. A limit of 0 means that there is no limit."""
        self._limits.update(limits)

    def ticket(self) -> int:
        """A place at the end of the queue."""
        return next(self._tickets)

    def begin(self, ticket: int, claim: Claim) -> Route | str:
        """Take everything that a task needs, or nothing.

        :return: the route of the first disk, or what is missing, in words.
        """
        return self._ask(ticket, _Want(claim.stages, {route: claim.disk(route) for route in claim.routes}))

    def one_more(self, ticket: int, claim: Claim, route: Route) -> str:
        """Take what one more disk of a running task needs, or nothing; what is missing, in words."""
        answer = self._ask(ticket, _Want((), {route: claim.disk(route)}))
        return answer if isinstance(answer, str) else ""

    def take_idle(self, resource: Resource) -> bool:
        """Take one unit, unless any is taken or anybody waits for one."""
        waited = any(resource in stage for want in self._wants.values() for stage in want.stages)
        if waited or self._used[resource]:
            return False
        self._used[resource] += 1
        return True

    def leave(self, ticket: int) -> None:
        """Stop waiting; no error if nothing is waited for."""
        self._wants.pop(ticket, None)

    def give_back(self, resources: Iterable[Resource]) -> None:
        """One unit of each of these is free again."""
        for resource in resources:
            self._used[resource] -= 1
            if not self._used[resource]:
                del self._used[resource]  # VMs come and go

    def used(self, resource: Resource) -> int:
        """How many units are taken."""
        return self._used[resource]

    def limit(self, resource: Resource) -> int:
        """How many units there are; 0 for no limit."""
        return self._limits.get(resource, 1)

    def load(self, proxy: str) -> float:
        """Share of a proxy's slots that is taken."""
        slots = Resource(Kind.SLOT, proxy)
        return self._used[slots] / max(1, self.limit(slots))

    def _ask(self, ticket: int, want: _Want) -> Route | str:
        self._wants[ticket] = want
        aside: Counter[Resource] = Counter()
        for earlier in sorted(number for number in self._wants if number < ticket):
            self._set_aside(self._wants[earlier], aside)
        lacking, routes = self._set_aside(want, aside)
        if not routes:
            return self._in_words(lacking)
        route = best_route(routes, self.load)
        self._used.update(resource for stage in (*want.stages, want.choices[route]) for resource in stage)
        del self._wants[ticket]
        return route

    def _set_aside(self, want: _Want, aside: Counter[Resource]) -> tuple[frozenset[Resource], list[Route]]:
        """Add what ``want`` contends for; what it lacks, and the routes that are free for it."""
        for stage in want.stages:
            lacking = self._lacking(stage, aside)
            aside.update(stage)
            if lacking:
                return lacking, []
        short = {route: self._lacking(disk, aside) for route, disk in want.choices.items()}
        aside.update(frozenset().union(*want.choices.values()))
        return frozenset().union(*short.values()), [route for route, lacking in short.items() if not lacking]

    def _lacking(self, resources: frozenset[Resource], aside: Counter[Resource]) -> frozenset[Resource]:
        return frozenset(
            item for item in resources if self.limit(item) and self._used[item] + aside[item] >= self.limit(item)
        )

    def _in_words(self, lacking: frozenset[Resource]) -> str:
        # A full datastore is in the way of every route, a proxy only of its own.
        kind = next(kind for kind in (Kind.VM, Kind.SNAPSHOT, Kind.TRANSFER, Kind.SLOT)
                    if any(item.kind is kind for item in lacking))  # fmt: skip
        short = sorted((item for item in lacking if item.kind is kind), key=lambda item: item.name)
        first = short[0]
        waited = all(self._used[item] < self.limit(item) for item in short)
        if kind is Kind.VM:
            return "another task comes first on the same VM" if waited else "another task works on the same VM"
        if kind is Kind.SNAPSHOT:
            text = f"{self._used[first]} of {self.limit(first)} source snapshots are open on {first.name}"
        elif kind is Kind.TRANSFER:
            text = f"datastore {first.name} is written by {self._used[first]} disks already"
        else:
            text = f"no free task slot on proxy {' or '.join(item.name for item in short)}"
        return f"{text}, others waited longer for the rest" if waited else text
