"""Planning: how the changes of a disk are found, and the reason that the operator sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import Refused
from understudy.model.extent import Extent
from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.replica import (
    Baseline,
    Consistency,
    FileMark,
    ImageGeneration,
    PointDisk,
    RestorePoint,
    SourceGeneration,
)
from understudy.model.transfer import DiskPlan, Reason, TransferMode
from understudy.replication.planning import (
    PlanningFacts,
    began_at,
    no_longer_replicated,
    plan_disks,
    required_bytes,
    with_suspects,
    without_tracking,
)
from understudy.units import GIB, MIB

NAMES = ("vda", "vdb", "sda")
BLOCK_SIZES = st.sampled_from([256 << 10, MIB, 4 * MIB])
TRACKING = st.sampled_from([Reason.NONE, Reason.NO_BASELINE, Reason.CHECKPOINT_MISSING, Reason.BITMAP_INCONSISTENT])
SIZES = st.sampled_from([MIB, 2 * MIB, GIB, GIB + 512])
PATHS = st.sampled_from(["/images/a.qcow2", "/images/b.qcow2"])


def made_point(disks: list[tuple[str, int, str]], block_size: int = MIB) -> RestorePoint:
    layers = tuple(PointDisk(name, size, f"{name}.qcow2", "", f"{name}.digest", 1, path) for name, size, path in disks)
    return RestorePoint("p1", "2026-01-01T00:00:00.000+00:00", Consistency.CRASH, 1, block_size, layers,
                        Baseline("cp", tuple(name for name, _, _ in disks), "p1"))  # fmt: skip


DISK = Disk("vda", "/images/a.qcow2", "qcow2", GIB, allocated=5 * MIB, tracked=True)
POINT = made_point([("vda", GIB, "/images/a.qcow2")])
FACTS = PlanningFacts(POINT, frozenset(), {"vda": Reason.NONE}, MIB, full_scan=False, began=POINT)
MARK = FileMark(inode=7, size=5 * MIB, mtime_ns=1000, ctime_ns=1000)


def seen(bitmaps: tuple[str, ...] | None = None, **changes: int) -> ImageGeneration:
    """The image of vda; ``bitmaps`` if its VM is off."""
    return ImageGeneration("vda", replace(MARK, **changes), bitmaps)


def with_images(before: ImageGeneration | None, now: ImageGeneration | None) -> PlanningFacts:
    generation = SourceGeneration((before,)) if before else None
    point = replace(POINT, generation=generation)
    return replace(FACTS, newest=point, began=point, images={"vda": now} if now else {})


def off_at(newest: str, since: str) -> RestorePoint:
    """A point of a VM that was off, so that its baseline is that of an older one."""
    return replace(POINT, id=newest, baseline=Baseline("cp", ("vda",), since))


@st.composite
def situations(draw: st.DrawFn) -> tuple[tuple[Disk, ...], PlanningFacts]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    disks = tuple(
        Disk(name, draw(PATHS), "qcow2", draw(SIZES), draw(st.sampled_from([0, MIB])), tracked=draw(st.booleans()))
        for name in names
    )
    before = draw(st.lists(st.sampled_from(NAMES), unique=True))
    point = made_point([(name, draw(SIZES), draw(PATHS)) for name in before], draw(BLOCK_SIZES))
    facts = PlanningFacts(
        newest=draw(st.sampled_from([None, point])),
        damaged=frozenset(draw(st.lists(st.sampled_from(NAMES), unique=True))),
        tracking=draw(st.dictionaries(st.sampled_from(NAMES), TRACKING)),
        block_size=draw(BLOCK_SIZES),
        full_scan=draw(st.booleans()),
        began=draw(st.sampled_from([None, point])),
    )
    return disks, facts


def without_shrinking(situation: tuple[tuple[Disk, ...], PlanningFacts]) -> tuple[tuple[Disk, ...], PlanningFacts]:
    disks, facts = situation
    former = {disk.name: disk.size for disk in facts.newest.disks} if facts.newest else {}
    return tuple(replace(disk, size=max(disk.size, former.get(disk.name, 0))) for disk in disks), facts


GROWING = situations().map(without_shrinking)


@given(GROWING)
def test_a_disk_is_incremental_only_where_nothing_at_all_speaks_against_it(
    situation: tuple[tuple[Disk, ...], PlanningFacts],
) -> None:
    disks, facts = situation
    for disk, plan in zip(disks, plan_disks("web", disks, facts), strict=True):
        before = facts.newest.disk(disk.name) if facts.newest else None
        allowed = (
            facts.newest is not None
            and before is not None
            and disk.name not in facts.damaged
            and disk.tracked
            and disk.path == before.source_path
            and disk.size == before.size
            and facts.block_size == facts.newest.block_size
            and facts.tracking.get(disk.name) is Reason.NONE
            and not facts.full_scan
            and facts.began == facts.newest
        )
        assert (plan.mode is TransferMode.INCREMENTAL) == allowed


@given(GROWING)
def test_a_layer_is_chained_exactly_where_an_intact_one_lies_below(
    situation: tuple[tuple[Disk, ...], PlanningFacts],
) -> None:
    disks, facts = situation
    for disk, plan in zip(disks, plan_disks("web", disks, facts), strict=True):
        before = facts.newest.disk(disk.name) if facts.newest else None
        assert plan.chained == (before is not None and disk.name not in facts.damaged)
        assert plan.chained or plan.mode is TransferMode.FULL


@given(GROWING)
def test_every_disk_has_a_plan_in_order_and_a_reason_unless_incremental(
    situation: tuple[tuple[Disk, ...], PlanningFacts],
) -> None:
    disks, facts = situation
    plans = plan_disks("web", disks, facts)
    assert [(plan.name, plan.size) for plan in plans] == [(disk.name, disk.size) for disk in disks]
    for plan in plans:
        assert bool(plan.reason) == (plan.mode is not TransferMode.INCREMENTAL)


@given(GROWING, st.booleans(), BLOCK_SIZES, TRACKING)
def test_a_shrunk_disk_with_points_is_refused_and_named_whatever_the_others_are(
    situation: tuple[tuple[Disk, ...], PlanningFacts], full_scan: bool, block_size: int, tracking: Reason
) -> None:
    others, _ = situation
    facts = PlanningFacts(POINT, frozenset({"vdb", "sda"}), {"vda": tracking}, block_size, full_scan)
    disks = [*(disk for disk in others if disk.name != "vda"), replace(DISK, size=GIB - 512)]
    with pytest.raises(Refused, match=r"disk vda of VM 'web': it shrank from 1073741824 to 1073741312 bytes; "
                       r"give it its old size again, or exclude it with --exclude-disk 'web:vda' \(older points keep"):
        plan_disks("web", disks, facts)


def test_nothing_against_it_is_incremental() -> None:
    assert plan_disks("web", [DISK], FACTS) == (DiskPlan("vda", GIB, TransferMode.INCREMENTAL, Reason.NONE, True),)


@pytest.mark.parametrize(
    ("disk", "facts", "mode", "reason", "chained"),
    [
        (DISK, replace(FACTS, newest=None), TransferMode.FULL, Reason.FIRST_RUN, False),
        (replace(DISK, name="vdb"), FACTS, TransferMode.FULL, Reason.NEW_DISK, False),
        (DISK, replace(FACTS, damaged=frozenset({"vda"})), TransferMode.FULL, Reason.REPLICA_CHANGED, False),
        (DISK, replace(FACTS, block_size=4 * MIB), TransferMode.FULL, Reason.BLOCK_SIZE_CHANGED, True),
        (DISK, replace(FACTS, full_scan=True), TransferMode.DIGEST_SCAN, Reason.FORCED, True),
        (replace(DISK, tracked=False), FACTS, TransferMode.DIGEST_SCAN, Reason.TRACKING_UNSUPPORTED, True),
        (replace(DISK, path="/x"), FACTS, TransferMode.DIGEST_SCAN, Reason.SOURCE_REPLACED, True),
        (replace(DISK, size=2 * GIB), FACTS, TransferMode.DIGEST_SCAN, Reason.DISK_RESIZED, True),
        (DISK, with_images(seen(), seen(mtime_ns=999)), TransferMode.DIGEST_SCAN, Reason.SOURCE_ROLLED_BACK, True),
        (DISK, with_images(seen(), seen(inode=8)), TransferMode.DIGEST_SCAN, Reason.SOURCE_REPLACED, True),
        (DISK, replace(FACTS, tracking={}), TransferMode.DIGEST_SCAN, Reason.NO_BASELINE, True),
        (DISK, replace(FACTS, tracking={"vda": Reason.CHECKPOINT_MISSING}), TransferMode.DIGEST_SCAN,
         Reason.CHECKPOINT_MISSING, True),
        (DISK, replace(FACTS, tracking={"vda": Reason.BITMAP_INCONSISTENT}), TransferMode.DIGEST_SCAN,
         Reason.BITMAP_INCONSISTENT, True),
        (DISK, replace(FACTS, tracking={"vda": Reason.CBT_DISABLED}), TransferMode.DIGEST_SCAN,
         Reason.CBT_DISABLED, True),
        (DISK, replace(FACTS, tracking={"vda": Reason.CBT_RESET}), TransferMode.DIGEST_SCAN, Reason.CBT_RESET, True),
        (DISK, replace(FACTS, tracking={"vda": Reason.SNAPSHOT_LEFT}), TransferMode.DIGEST_SCAN,
         Reason.SNAPSHOT_LEFT, True),
    ],
    ids=lambda value: value.name if isinstance(value, Reason) else "",
)  # fmt: skip
def test_each_obstacle_has_its_own_reason(
    disk: Disk, facts: PlanningFacts, mode: TransferMode, reason: Reason, chained: bool
) -> None:
    (plan,) = plan_disks("web", [disk], facts)
    assert (plan.mode, plan.reason, plan.chained) == (mode, reason, chained)


def test_every_reason_code_can_be_reached() -> None:
    marks = test_each_obstacle_has_its_own_reason.pytestmark  # type: ignore[attr-defined]
    # The last one by former_exclusions().
    found_while_copying = {Reason.CBT_MISMATCH, Reason.CBT_REFUSED, Reason.EXCLUSIONS_LOST}
    assert {case[3] for case in marks[0].args[1]} == set(Reason) - {Reason.NONE} - found_while_copying


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (seen(), seen(), Reason.NONE),
        (seen(), seen(mtime_ns=2000, ctime_ns=2000, size=9 * MIB), Reason.NONE),
        (seen(("cp",)), seen(("cp", "foreign")), Reason.NONE),
        (seen(("cp", "foreign")), seen(("cp",)), Reason.NONE),
        (seen(("cp",)), seen(()), Reason.SOURCE_ROLLED_BACK),
        (seen(("cp",)), seen(None, mtime_ns=2000), Reason.NONE),
        (seen(None), seen(()), Reason.NONE),
        (None, seen(inode=8), Reason.NONE),
        (seen(), None, Reason.NONE),
    ],
    ids=["same", "written to", "foreign bitmap added", "foreign bitmap removed", "our bitmap gone",
         "bitmaps of a running vm", "it ran then", "older record", "over the network"],
)  # fmt: skip
def test_an_image_is_another_or_older_one_only_if_that_can_be_told(
    before: ImageGeneration | None, now: ImageGeneration | None, reason: Reason
) -> None:
    (plan,) = plan_disks("web", [DISK], with_images(before, now))
    assert plan.reason is reason


def test_a_point_of_a_vm_that_was_off_is_compared_with_the_point_where_its_tracking_began() -> None:
    began, newest = replace(POINT, id="p0"), off_at("p1", "p0")
    (plan,) = plan_disks("web", [DISK], replace(FACTS, newest=newest, began=began))
    assert (plan.mode, plan.since_point) == (TransferMode.INCREMENTAL, "p0")
    scan = replace(FACTS, newest=newest, began=began, tracking={"vda": Reason.BITMAP_INCONSISTENT})
    assert plan_disks("web", [DISK], scan)[0].since_point == ""
    assert without_tracking([plan], Reason.CHECKPOINT_MISSING)[0].since_point == ""


@pytest.mark.parametrize(
    "began",
    [None, replace(POINT, id="p0", disks=()), replace(made_point([("vda", GIB - 512, "/images/a.qcow2")]), id="p0"),
     replace(POINT, id="p0", block_size=4 * MIB)],
    ids=["retired", "without the disk", "of another size", "with other blocks"],
)  # fmt: skip
def test_a_disk_is_scanned_if_the_point_where_its_tracking_began_cannot_be_compared(began: RestorePoint | None) -> None:
    facts = replace(FACTS, newest=off_at("p1", "p0"), began=began)
    (plan,) = plan_disks("web", [DISK], facts)
    assert (plan.mode, plan.reason) == (TransferMode.DIGEST_SCAN, Reason.NO_BASELINE)


def test_a_vm_that_stays_off_is_not_scanned_again_and_again_when_that_point_is_retired() -> None:
    newest = replace(off_at("p9", "p0"), generation=SourceGeneration((seen(("cp",)),)))
    still = replace(FACTS, newest=newest, began=None, images={"vda": seen(("cp",))})
    (plan,) = plan_disks("web", [DISK], still)
    assert (plan.mode, plan.since_point) == (TransferMode.INCREMENTAL, "")
    for now in (seen(("cp",), ctime_ns=2000), seen(None)):
        (plan,) = plan_disks("web", [DISK], replace(still, images={"vda": now}))
        assert plan.reason is Reason.NO_BASELINE


def named(point: str, checkpoint: str, since: str = "") -> RestorePoint:
    return replace(POINT, id=point, baseline=Baseline(checkpoint, ("vda",), since) if checkpoint else None)


@pytest.mark.parametrize(
    ("points", "began"),
    [
        ([], None),
        ([named("p1", "")], None),
        ([named("p1", "c1", "p1")], "p1"),
        ([named("p1", "c1", "p1"), named("p2", "c1", "p1")], "p1"),
        ([named("p2", "c1", "p1")], None),
        ([named("p1", "c1")], None),
        ([named("p1", "c1"), named("p2", "c1")], None),
        ([named("p1", "c1"), named("p2", "c2")], "p2"),
        ([named("p1", "c1"), named("p2", "c2"), named("p3", "c2")], "p2"),
        ([named("p1", ""), named("p2", "c2"), named("p3", "c2")], "p2"),
    ],
)
def test_where_tracking_began_is_recorded_or_concluded_or_unknown(
    points: list[RestorePoint], began: str | None
) -> None:
    found = began_at(points)
    assert (found.id if found else None) == began


def test_a_disk_that_went_is_told_once_and_why() -> None:
    vm = Vm("web", "u", VmState.RUNNING, "", "", "", 0, 1, (DISK, replace(DISK, name="vdb")), (), False, False, "")
    newest = made_point([("vda", GIB, ""), ("vdb", GIB, ""), ("vdc", GIB, "")])
    assert no_longer_replicated(vm, [DISK], newest) == (
        "disk vdb is excluded now: points up to p1 keep it, the replica VM has it no more",
        "disk vdc is no longer part of VM 'web': points up to p1 keep it, the replica VM has it no more",
    )
    assert no_longer_replicated(vm, [DISK], made_point([("vda", GIB, "")])) == ()
    assert no_longer_replicated(vm, [DISK], None) == ()


@given(GROWING, st.sampled_from([Reason.BITMAP_INCONSISTENT, Reason.CHECKPOINT_MISSING]))
def test_refused_tracking_turns_incremental_disks_into_scans_and_leaves_the_others(
    situation: tuple[tuple[Disk, ...], PlanningFacts], reason: Reason
) -> None:
    disks, facts = situation
    plans = plan_disks("web", disks, facts)
    for before, after in zip(plans, without_tracking(plans, reason), strict=True):
        if before.mode is TransferMode.INCREMENTAL:
            assert after == replace(before, mode=TransferMode.DIGEST_SCAN, reason=reason)
        else:
            assert after == before


@given(GROWING)
def test_the_space_asked_for_holds_every_layer_that_stands_alone(
    situation: tuple[tuple[Disk, ...], PlanningFacts],
) -> None:
    disks, facts = situation
    plans = plan_disks("web", disks, facts)
    alone = sum(
        disk.allocated or disk.size for disk, plan in zip(disks, plans, strict=True) if not plan.chained
    )
    chained = sum(plan.chained for plan in plans)
    assert required_bytes(disks, plans) == alone + chained * MIB


def test_a_disk_of_unknown_allocation_is_asked_for_with_its_size() -> None:
    plans = plan_disks("web", [replace(DISK, allocated=0)], replace(FACTS, newest=None))
    assert required_bytes([replace(DISK, allocated=0)], plans) == GIB
    assert required_bytes([DISK], plans) == 5 * MIB


def test_what_is_suspect_is_looked_at_in_whole_blocks_unless_the_whole_disk_is_written() -> None:
    plans = tuple(
        DiskPlan(name, 10 * MIB + 512, mode, Reason.NONE, chained=True)
        for name, mode in (("vda", TransferMode.INCREMENTAL), ("vdb", TransferMode.DIGEST_SCAN),
                           ("vdc", TransferMode.FULL), ("vdd", TransferMode.INCREMENTAL))
    )  # fmt: skip
    # The disk was shorter when the point was made: its last block was not whole.
    bad = (Extent(MIB, MIB), Extent(9 * MIB, 512))
    found = with_suspects(plans, dict.fromkeys(("vda", "vdb", "vdc"), bad), MIB)
    whole = (Extent(MIB, MIB), Extent(9 * MIB, MIB))
    assert [plan.suspect for plan in found] == [whole, whole, (), ()]
    assert without_tracking(found, Reason.CBT_MISMATCH)[0].suspect == whole
