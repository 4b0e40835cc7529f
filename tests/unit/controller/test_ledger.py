"""The ledger: limits hold, who waits holds nothing, earlier ones are not overtaken by those who need the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.controller.choice import Route
from understudy.controller.ledger import Claim, Kind, Ledger, Resource

NEAR, FAR = Resource(Kind.SLOT, "near"), Resource(Kind.SLOT, "far")
IMAGES = Resource(Kind.SNAPSHOT, "prod:/images")
STORE = Resource(Kind.TRANSFER, "dr-store")
WIRE = Route("near", "far")


def claim(vm: str = "web", *routes: Route, places: str = "prod:/images", datastore: str = "dr-store") -> Claim:
    return Claim(f"prod/{vm}", frozenset(places.split()), datastore, routes or (WIRE,))


def ledger(near: int = 2, far: int = 2, snapshots: int = 4, transfers: int = 0) -> Ledger:
    made = Ledger()
    made.set_limits({NEAR: near, FAR: far, IMAGES: snapshots, STORE: transfers})
    return made


def begun(books: Ledger, wanted: Claim) -> int:
    """The ticket of a task that began."""
    ticket = books.ticket()
    assert isinstance(books.begin(ticket, wanted), Route)
    return ticket


def test_a_task_takes_one_of_everything_and_only_one_slot_where_both_ends_are_one_proxy() -> None:
    books = ledger()
    begun(books, claim("web"))
    assert [books.used(item) for item in (NEAR, FAR, IMAGES, STORE)] == [1, 1, 1, 1]
    begun(books, claim("db", Route("near", "near")))
    assert [books.used(item) for item in (NEAR, FAR, IMAGES, STORE)] == [2, 1, 2, 2]


@pytest.mark.parametrize(
    ("limits", "obstacle"),
    [
        ({"far": 1}, "no free task slot on proxy far"),
        ({"near": 1, "far": 1}, "no free task slot on proxy far or near"),
        ({"snapshots": 1}, "1 of 1 source snapshots are open on prod:/images"),
        ({"transfers": 1}, "datastore dr-store is written by 1 disks already"),
        ({"far": 1, "transfers": 1}, "datastore dr-store is written by 1 disks already"),
    ],
)
def test_who_lacks_one_thing_gets_nothing_and_is_told_what_it_is(limits: dict[str, int], obstacle: str) -> None:
    books = ledger(**limits)
    begun(books, claim("web"))
    before = [books.used(item) for item in (NEAR, FAR, IMAGES, STORE)]
    assert books.begin(books.ticket(), claim("db")) == obstacle
    assert [books.used(item) for item in (NEAR, FAR, IMAGES, STORE)] == before


def test_a_vm_is_worked_on_by_one_task_at_a_time() -> None:
    books = ledger()
    begun(books, claim("web"))
    assert books.begin(books.ticket(), claim("web")) == "another task works on the same VM"


def test_tasks_of_the_same_vm_begin_in_their_order() -> None:
    books = ledger()
    held = claim("web")
    begun(books, held)
    second, third = books.ticket(), books.ticket()
    books.begin(second, claim("web"))
    for resources in (*held.stages, held.disk(WIRE)):
        books.give_back(resources)
    assert books.begin(third, claim("web")) == "another task comes first on the same VM"
    assert books.begin(second, claim("web")) == WIRE


def test_a_vm_with_disks_on_two_datastores_needs_a_snapshot_on_each() -> None:
    books = ledger()
    books.set_limits({Resource(Kind.SNAPSHOT, "prod:/fast"): 1})
    begun(books, claim("web", places="prod:/fast"))
    both = claim("db", places="prod:/fast prod:/images")
    assert books.begin(books.ticket(), both) == "1 of 1 source snapshots are open on prod:/fast"
    assert books.used(IMAGES) == 0


def test_a_later_task_overtakes_with_what_the_waiting_one_does_not_need() -> None:
    books = ledger(near=3, far=1)
    held = claim("web")
    begun(books, held)
    waiter = books.ticket()
    assert books.begin(waiter, claim("db")) == "no free task slot on proxy far"
    # Of the two free slots of the near proxy one is set aside for the task that waits.
    begun(books, claim("cache", Route("near", "near")))
    late = books.begin(books.ticket(), claim("mail", Route("near", "near")))
    assert late == "no free task slot on proxy near, others waited longer for the rest"
    books.give_back(held.disk(WIRE))
    assert books.begin(waiter, claim("db")) == WIRE


def test_a_task_that_waits_for_its_vm_keeps_nobody_from_the_proxies() -> None:
    books = ledger(near=2, far=2)
    begun(books, claim("web"))
    assert isinstance(books.begin(books.ticket(), claim("web")), str)
    begun(books, claim("db"))


def test_who_stops_waiting_is_in_nobodys_way() -> None:
    books = ledger(near=2, far=1)
    begun(books, claim("web"))
    waiter = books.ticket()
    books.begin(waiter, claim("db"))
    late, wanted = books.ticket(), claim("mail", Route("near", "near"))
    assert isinstance(books.begin(late, wanted), str)
    books.leave(waiter)
    assert isinstance(books.begin(late, wanted), Route)


def test_the_next_disk_of_a_task_comes_before_tasks_that_began_to_wait_later() -> None:
    books = ledger(near=2, far=2)
    first, other = claim("web"), claim("db")
    ticket = begun(books, first)
    begun(books, other)
    assert books.one_more(ticket, first, WIRE) == "no free task slot on proxy far or near"
    waiter = books.ticket()
    assert isinstance(books.begin(waiter, claim("mail")), str)
    books.give_back(other.disk(WIRE))
    assert isinstance(books.begin(waiter, claim("mail")), str)
    assert books.one_more(ticket, first, WIRE) == ""


def test_idle_proxies_share_the_tasks() -> None:
    books = ledger(near=4, far=2)
    either = (Route("near", "near"), Route("far", "far"))
    given_to = []
    for number in range(6):
        route = books.begin(books.ticket(), claim(f"vm{number}", *either, places=f"p{number}"))
        assert isinstance(route, Route)
        given_to.append(route.source)
    assert given_to == ["far", "near", "near", "far", "near", "near"]


def test_a_lowered_limit_holds_for_those_who_come_and_takes_nothing_away() -> None:
    books = ledger(near=2, far=2)
    held = claim("web")
    begun(books, held)
    begun(books, claim("db"))
    books.set_limits({FAR: 1})
    waiter = books.ticket()
    assert books.begin(waiter, claim("mail")) == "no free task slot on proxy far or near"
    books.give_back(held.disk(WIRE))
    assert books.begin(waiter, claim("mail")) == "no free task slot on proxy far"
    books.set_limits({FAR: 2})
    assert books.begin(waiter, claim("mail")) == WIRE


PROXIES, PLACES, STORES = ("p", "q", "r"), ("x", "y"), ("s", "t")
ROUTES = st.lists(st.builds(Route, st.sampled_from(PROXIES), st.sampled_from(PROXIES)), min_size=1, max_size=4)
CLAIMS = st.builds(
    Claim, st.sampled_from(["vm1", "vm2", "vm3", "vm4", "vm5"]),
    st.sets(st.sampled_from(PLACES), min_size=1).map(frozenset), st.sampled_from(STORES), ROUTES.map(tuple),
)  # fmt: skip
LIMITS = st.fixed_dictionaries({
    **{Resource(Kind.SLOT, name): st.integers(1, 3) for name in PROXIES},
    **{Resource(Kind.SNAPSHOT, name): st.integers(1, 2) for name in PLACES},
    **{Resource(Kind.TRANSFER, name): st.integers(0, 2) for name in STORES},
})  # fmt: skip


@dataclass
class Runner:
    """A task that takes disk after disk, each for one round."""

    claim: Claim
    ticket: int
    disks: int
    route: Route | None = None
    active: int = 0
    waited: int = 0
    in_use: list[frozenset[Resource]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.route is not None and not self.disks and not self.active

    def turn(self, books: Ledger) -> None:
        """Try to get on by one: begin, or give the disks back that ran and take as many as there are."""
        if self.route is None:
            answer = books.begin(self.ticket, self.claim)
            self.waited += 1
            if isinstance(answer, str):
                return
            self.route, self.active, self.disks = answer, 1, self.disks - 1
            return
        disk = self.claim.disk(self.route)
        for _ in range(self.active):
            books.give_back(disk)
        self.active = 0
        while self.disks and not books.one_more(self.ticket, self.claim, self.route):
            self.active, self.disks = self.active + 1, self.disks - 1
        if self.ended:
            books.leave(self.ticket)
            for stage in self.claim.stages:
                books.give_back(stage)


def held_by(runners: list[Runner]) -> dict[Resource, int]:
    """What the running tasks hold, counted without the ledger."""
    counts: dict[Resource, int] = {}
    for runner in runners:
        if runner.route is not None and not runner.ended:
            for group in (*runner.claim.stages, *[runner.claim.disk(runner.route)] * runner.active):
                for item in group:
                    counts[item] = counts.get(item, 0) + 1
    return counts


@settings(max_examples=300)
@given(LIMITS, st.lists(st.tuples(CLAIMS, st.integers(1, 5)), min_size=1, max_size=25), st.randoms())
def test_no_limit_is_ever_exceeded_and_every_task_ends(
    limits: dict[Resource, int], wanted: list[tuple[Claim, int]], chance: st.DataObject
) -> None:
    books = Ledger()
    books.set_limits(limits)
    runners = [Runner(item, books.ticket(), disks) for item, disks in wanted]
    for _ in range(50 * len(runners)):
        chance.shuffle(runners)  # type: ignore[attr-defined]
        for runner in runners:
            if not runner.ended:
                runner.turn(books)
                counts = held_by(runners)
                assert all(not books.limit(item) or count <= books.limit(item) for item, count in counts.items())
                assert {item: books.used(item) for item in counts} == counts
        if all(runner.ended for runner in runners):
            break
    assert all(runner.ended for runner in runners)
    everything = [*limits, *(Resource(Kind.VM, item.vm) for item, _ in wanted)]
    assert not any(books.used(item) for item in everything)


@settings(max_examples=150)
@given(LIMITS, CLAIMS, st.lists(st.tuples(CLAIMS, st.integers(1, 3)), min_size=1, max_size=12))
def test_a_task_that_needs_much_begins_although_others_that_need_little_never_stop_coming(
    limits: dict[Resource, int], patient: Claim, stream: list[tuple[Claim, int]]
) -> None:
    books = Ledger()
    books.set_limits(limits)
    runners = [Runner(item, books.ticket(), disks) for item, disks in stream]
    for runner in runners:
        runner.turn(books)
    me = Runner(patient, books.ticket(), 1)
    for _ in range(400):
        # The others always get their turn first, and whoever has ended comes again.
        for runner in runners:
            runner.turn(books)
        me.turn(books)
        if me.route is not None:
            break
        runners = [Runner(r.claim, books.ticket(), 2) if r.ended else r for r in runners]
    assert me.route is not None
