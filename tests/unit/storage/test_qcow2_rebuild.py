"""Rebuilding a record from files: after any history and any loss, every point that is listed is what it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import event, given
from hypothesis import strategies as st

from understudy.model.replica import Baseline, Consistency, PointDisk, Replica, ReplicaState, RestorePoint
from understudy.storage.qcow2.chains import contradictions, retired
from understudy.storage.qcow2.rebuild import Candidates, Findings, FoundDigest, FoundLayer, FoundPoint, candidates

from .replica_lab import IDENTITY

Content = tuple[int, ...]
BLOCK = 65536
DISKS = ("vda", "vdb")


class Stopped(Exception):
    """The program was killed."""


@dataclass
class Layer:
    """A layer as a model: what each block that it has holds."""

    disk: str
    point: str
    blocks: int
    backing: str
    data: dict[int, int]


@dataclass
class World:
    """A replica's files, and what its points must contain; ``left`` acts of a merge happen before the kill."""

    layers: dict[str, Layer] = field(default_factory=dict)
    digests: dict[tuple[str, str], Content] = field(default_factory=dict)
    points: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    made: dict[str, dict[str, Content]] = field(default_factory=dict)
    left: int = -1

    def shown(self, file: str) -> Content:
        """What a layer and all below it show."""
        layer = self.layers[file]
        below = self.shown(layer.backing) if layer.backing else ()
        return tuple(layer.data.get(index, below[index] if index < len(below) else 0) for index in range(layer.blocks))

    def publish(self, disks: dict[str, int], writes: Sequence[tuple[str, int, int]], alone: frozenset[str]) -> None:
        """Add a point with these disks, sizes in blocks."""
        point = f"{len(self.made):03d}"
        before = self.points[-1][1] if self.points else {}
        files = {}
        for disk, blocks in disks.items():
            lower = before.get(disk, "") if disk not in alone else ""
            blocks = max(blocks, self.layers[lower].blocks) if lower else blocks
            data = {index % blocks: value for name, index, value in writes if name == disk}
            files[disk] = f"{disk}-{point}.qcow2"
            self.layers[files[disk]] = Layer(disk, point, blocks, lower, data)
            self.digests[disk, point] = self.shown(files[disk])
        self.points.append((point, files))
        self.made[point] = {disk: self.shown(file) for disk, file in files.items()}

    def retire(self, count: int) -> None:
        """Merge the oldest points away, as :mod:`understudy.storage.qcow2.merge` does."""
        self.points = self.points[count:]
        for disk, top in list(self.points[0][1].items()):
            chain = [top]
            while self.layers[chain[0]].backing:
                chain.insert(0, self.layers[chain[0]].backing)
            for layer in chain[1:]:
                self._merge(layer, chain[0], disk, top)
        self._drop()

    def _merge(self, layer: str, base: str, disk: str, top: str) -> None:
        upper, lower = self.layers[layer], self.layers[base]
        lower.blocks = upper.blocks
        for number, (index, value) in enumerate(sorted(upper.data.items())):
            if number % 2:
                self._act()
            lower.data[index] = value
        self._act()
        for other in self.layers.values():
            if other.backing == layer and other is not upper:
                other.backing = base
        self._act()
        if layer == top:
            self.points[0][1][disk] = base

    def _drop(self) -> None:
        needed = {file for _, files in self.points for file in files.values()}
        ids = {point for point, _ in self.points}
        for file in [file for file in self.layers if file not in needed]:
            self._act()
            del self.layers[file]
        for key in [key for key in self.digests if key[1] not in ids]:
            self._act()
            del self.digests[key]

    def _act(self) -> None:
        if self.left == 0:
            raise Stopped
        self.left -= 1

    def found(self, point: str, *, told: bool, problem: str = "") -> FoundPoint:
        """What the files below ``points/`` say."""
        disks = tuple(PointDisk(disk, len(content) * BLOCK, f"{disk}-x.qcow2", "", "", 1, f"/src/{disk}")
                      for disk, content in self.made[point].items())
        made = RestorePoint(point, "2026-01-01T00:00:00+00:00", Consistency.FILESYSTEM, 3, BLOCK, disks,
                            Baseline(f"cp-{point}", DISKS))
        return FoundPoint(point, made if told else None, "2026-01-02T00:00:00+00:00", frozenset(self.made[point]),
                          problem=problem)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Random histories, the last merge maybe stopped."""
    world = World()
    for _ in range(draw(st.integers(1, 7))):
        if len(world.points) > 1 and draw(st.integers(0, 3)) == 0:
            world.left = draw(st.one_of(st.just(-1), st.integers(0, 12)))
            try:
                world.retire(draw(st.integers(1, len(world.points) - 1)))
            except Stopped:
                return world
            world.left = -1
        names = draw(st.sampled_from([("vda",), DISKS, DISKS]))
        sizes = {name: draw(st.integers(1, 4)) for name in names}
        writes = draw(st.lists(st.tuples(st.sampled_from(names), st.integers(0, 3), st.integers(1, 3)), max_size=4))
        world.publish(sizes, writes, draw(st.frozensets(st.sampled_from(DISKS), max_size=1))
                      if draw(st.integers(0, 3)) == 0 else frozenset())
    return world


def settled(world: World, findings: Findings) -> Candidates:
    """The candidates once every one that is not what its digests say was refuted."""
    refuted: dict[str, str] = {}
    while True:
        found = candidates(findings, refuted)
        wrong = [point.id for point in found.points for disk in point.disks
                 if world.shown(disk.layer) != world.digests[disk.name, point.id]]
        if not wrong:
            return found
        refuted[wrong[-1]] = "its digests differ"


def findings_of(world: World, lost: frozenset[str], told: frozenset[str]) -> Findings:
    """What is found if the files named in ``lost`` are gone; ``told``: points with a sidecar."""
    layers = tuple(FoundLayer(layer.disk, layer.point, file, layer.blocks * BLOCK, layer.backing, 7)
                   for file, layer in world.layers.items() if file not in lost)
    digests = tuple(FoundDigest(disk, point, len(content) * BLOCK, BLOCK)
                    for (disk, point), content in world.digests.items() if f"{disk}-{point}.digest" not in lost)
    ids = {point for _, point in world.digests} | {point for point, _ in world.points}
    points = tuple(world.found(point, told=point in told, problem="lost" if f"{point}.xml" in lost else "")
                   for point in sorted(ids))
    return Findings(layers, digests, points)


def check_truth(world: World, found: Candidates, findings: Findings) -> None:
    """Every point has the disks, sizes and content that it had, and the record would be accepted."""
    for point in found.points:
        made = world.made[point.id]
        for disk in point.disks:
            assert world.shown(disk.layer) == made[disk.name]
            assert disk.size == len(made[disk.name]) * BLOCK
            assert disk.backing == world.layers[disk.layer].backing
        missing = set(made) - {disk.name for disk in point.disks}
        if missing:  # nothing at all is left of that disk, and no sidecar tells of it
            assert missing.isdisjoint(item.disk for item in findings.layers)
            assert missing.isdisjoint(item.disk for item in findings.digests)
            assert next(item for item in findings.points if item.id == point.id).told is None
    assert contradictions(Replica(IDENTITY, ReplicaState.READY, found.points), (), found.unlisted) == ""
    assert set(found.left_out).isdisjoint(point.id for point in found.points)
    assert set(found.left_out) | {point.id for point in found.points} == {item.id for item in findings.points}


@given(worlds(), st.data())
def test_whatever_is_lost_no_point_is_listed_that_is_not_what_it_was(world: World, data: st.DataObject) -> None:
    files = sorted([*world.layers, *(f"{disk}-{point}.digest" for disk, point in world.digests),
                    *(f"{point}.xml" for point, _ in world.points)])
    lost = data.draw(st.frozensets(st.sampled_from(files), max_size=3))
    told = data.draw(st.frozensets(st.sampled_from(sorted(world.made))))
    findings = findings_of(world, lost, told)
    found = settled(world, findings)
    check_truth(world, found, findings)
    for point, layers in world.points:
        needed = {f"{point}.xml", *(f"{disk}-{point}.digest" for disk in layers)}
        for file in layers.values():
            while file:
                needed.add(file)
                file = world.layers[file].backing
        if lost.isdisjoint(needed):
            # Of two points of equal content a lost layer may be missed at either.
            assert found.left_out.get(point, "shows a newer point").endswith("shows a newer point")
        event("left out" if point in found.left_out else "listed")


@given(worlds(), st.data())
def test_a_rebuilt_record_can_be_thinned_out_again(world: World, data: st.DataObject) -> None:
    files = [f"{disk}-{point}.digest" for disk, point in world.digests]
    lost = data.draw(st.frozensets(st.sampled_from(sorted(files)), max_size=3))
    found = settled(world, findings_of(world, lost, frozenset(world.made)))
    replica = Replica(IDENTITY, ReplicaState.READY, found.points)
    for first in found.points[1:]:
        after, merging, unlisted = retired(replica, first, found.unlisted)
        assert contradictions(after, merging, unlisted) == ""


@given(worlds())
def test_without_a_loss_the_record_is_what_it_was(world: World) -> None:
    found = settled(world, findings_of(world, frozenset(), frozenset(world.made)))
    ids = [point.id for point in found.points]
    assert ids[-len(world.points):] == [point for point, _ in world.points]
    for (point, _), rebuilt in zip(world.points, found.points[-len(world.points):], strict=True):
        assert rebuilt.baseline == Baseline(f"cp-{point}", DISKS)
        assert (rebuilt.consistency, rebuilt.session) == (Consistency.FILESYSTEM, 3)
        assert [disk.source_path for disk in rebuilt.disks] == [f"/src/{disk.name}" for disk in rebuilt.disks]


def one_disk(*layers: FoundLayer) -> Findings:
    """Points a, b, c with a disk each, and these layers."""
    ids = ("a", "b", "c")
    return Findings(layers, tuple(FoundDigest("vda", point, BLOCK, BLOCK) for point in ids),
                    tuple(FoundPoint(point, created_at="2026-01-01T00:00:00+00:00") for point in ids))


def layer(point: str, backing: str = "", size: int = BLOCK, disk: str = "vda") -> FoundLayer:
    return FoundLayer(disk, point, f"{disk}-{point}.qcow2", size, backing, 7)


def test_what_a_damaged_header_says_is_not_followed() -> None:
    loop = candidates(one_disk(layer("a", "vda-b.qcow2"), layer("b", "vda-a.qcow2")), {})
    assert loop.points == ()
    assert "cannot lie on" in loop.left_out["b"]
    other = candidates(one_disk(layer("a"), layer("b", "vdb-a.qcow2"), layer("a", disk="vdb")), {"c": "it differs"})
    assert [point.id for point in other.points] == ["a"]
    smaller = candidates(one_disk(layer("a", size=2 * BLOCK), layer("b", "vda-a.qcow2")), {})
    assert smaller.points == ()


def test_a_point_that_would_lack_a_disk_on_which_a_newer_one_lies_is_left_out() -> None:
    findings = one_disk(layer("a"), layer("b", "vda-a.qcow2"), layer("c", "vda-b.qcow2"), layer("a", disk="vdb"),
                        layer("c", "vdb-a.qcow2", disk="vdb"))
    digests = (*findings.digests, *(FoundDigest("vdb", point, BLOCK, BLOCK) for point in ("a", "c")))
    found = candidates(replace(findings, digests=digests), {})
    assert [point.id for point in found.points] == ["a", "c"]
    assert "a newer point lies on its disk vdb" in found.left_out["b"]


def test_a_point_that_nobody_tells_of_has_no_baseline_and_is_crash_consistent() -> None:
    (point,) = candidates(one_disk(layer("a")), {"b": "it differs", "c": "it differs"}).points
    assert (point.id, point.baseline, point.consistency, point.session) == ("a", None, Consistency.CRASH, 0)


def test_digests_of_another_size_or_block_size_than_told_are_not_believed() -> None:
    findings = one_disk(layer("a"))
    (point,) = candidates(findings, {"b": "it differs", "c": "it differs"}).points
    for wrong in (replace(point, block_size=2 * BLOCK),
                  replace(point, disks=(replace(point.disks[0], size=2 * BLOCK),))):
        found = candidates(replace(findings, points=(FoundPoint("a", wrong),)), {})
        assert found.points == ()
