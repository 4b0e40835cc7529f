"""Bad input: whatever one file says that the next transfer starts from, what is published is the source or nothing is.

A replica with two points, made by real movers; then one file is cut, flipped, exchanged or gone, and the next transfer
runs as the rules choose. It may refuse, and it may cost a scan or a full copy; a wrong byte it may not cost.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_mover import Lab
from tests.unit.mover.mover_lab import add_bitmap, io, make_image, same_content, write
from understudy.context import Context
from understudy.errors import ReplicaError, UnderstudyError
from understudy.model.inventory import Disk
from understudy.model.job import Job, Proxy
from understudy.model.session import DiskReport
from understudy.model.transfer import Reason, TransferMode, TransportMode
from understudy.mover import api
from understudy.mover.digest import HEADER_BYTES
from understudy.mover.process import MoverProcess
from understudy.replication.base_digests import provide_base_digests
from understudy.replication.held import TransferSpec
from understudy.replication.planning import PlanningFacts, plan_disks
from understudy.replication.site import Site
from understudy.replication.target_side import damaged_disks
from understudy.storage.records.sealed import checksum
from understudy.units import KIB, MIB

SIZE = 6 * MIB + 512
#: Of a layer only what is looked at before each run: its header. The rest is what ``replica verify`` is for.
LAYER_HEADER = 72


class _Journal:
    """Where warnings and progress go; they are no matter here."""

    def warn(self, text: str) -> None:
        assert text

    def disk(self, report: DiskReport, final: bool) -> None:
        assert report.name


@dataclass
class _Ends:
    """What :func:`provide_base_digests` needs of a site."""

    source_mover: Any
    target_mover: Any
    journal: _Journal
    source_proxy: Proxy = field(default_factory=lambda: Proxy("near", "", 1))
    transport: TransportMode = TransportMode.LOCAL


class Scene:
    """A replica with two points, and a source that changed since; put back as it was before each example."""

    def __init__(self, source: MoverProcess, target: MoverProcess, place: Path) -> None:
        self._place, self._kept = place, place.with_name(place.name + "-kept")
        self._states = [place.parent / "source-state", place.parent / "target-state"]
        (place / "ds").mkdir(parents=True)
        image = make_image(place / "source.qcow2", SIZE)
        self.lab = Lab(source, target, place, image, block_size=256 * KIB)
        write(image, 1, (0, 3 * MIB), (5 * MIB, MIB + 512))
        self.lab.replicate(TransferMode.FULL)
        add_bitmap(image, "b0")
        write(image, 2, (64 * KIB, 10), (MIB, 300 * KIB))
        io(image, f"write -z {2 * MIB} 256K")
        self.lab.replicate(TransferMode.INCREMENTAL, "b0")
        add_bitmap(image, "b1")
        write(image, 3, (5 * KIB, 10), (2 * MIB, 70 * KIB), (4 * MIB, 512), (SIZE - 512, 512))
        # Zeros that the server calls data, and a hole: both must be noticed as changes of what the replica has.
        io(image, "write -P 0 1M 256K", "write -z -u 5M 512K")
        shutil.copytree(place, self._kept)
        self._copies = [(path, path.read_bytes()) for path in self.source_copies()]
        self._attempt, self._points = self.lab.attempt, list(self.lab.points)

    def source_copies(self) -> list[Path]:
        """The digest files of the source side."""
        return sorted(path for state in self._states for path in state.glob(f"digests/{self.lab.replica_id}/*"))

    def reset(self) -> None:
        """As it was."""
        shutil.rmtree(self._place)
        shutil.copytree(self._kept, self._place)
        for path in self.source_copies():
            path.unlink()
        for path, content in self._copies:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        self.lab.attempt, self.lab.points = self._attempt, list(self._points)

    @property
    def record(self) -> Path:
        return self._place / "ds" / "web 1" / "replica.json"

    def files(self, part: str) -> list[Path]:
        """Layers or digest files, oldest first."""
        return sorted((self._place / "ds" / "web 1" / part).iterdir())

    def next_point(self) -> str:
        """The next transfer as a task does it, modes and digests by the rules, and its publication; the mode."""
        lab = self.lab
        facts = lab.facts()
        newest = facts.replica.newest if facts.replica else None
        # The lab's points name no path on the source.
        disk = Disk("vda", "", "qcow2", lab.size(), tracked=True)
        planning = PlanningFacts(newest, damaged_disks(facts), {"vda": Reason.NONE}, lab.block_size, full_scan=False,
                                 began=newest)  # fmt: skip
        (plan,) = plan_disks("web", (disk,), planning)
        spec = TransferSpec(cast(Job, None), facts.replica.identity.id if facts.replica else lab.replica_id,
                            newest.id if newest else "", "")
        ends = cast(Site, _Ends(lab.source.client, lab.target.client, _Journal()))
        (plan,) = provide_base_digests(Context(), ends, lab.ref, spec, (plan,))
        lab.points = [newest.id] if newest and plan.chained else []
        lab.replicate(plan.mode, "b1" if plan.mode is TransferMode.INCREMENTAL else "")
        return f"{plan.mode} {plan.reason}".strip()

    def published(self) -> bool | None:
        """Whether the newest point is the source's content; None if no point was added."""
        try:
            facts = self.lab.facts()
        except ReplicaError:
            return None
        if facts.replica is None:
            return None
        ids = [point.id for point in facts.replica.points]
        if not ids or ids[-1] in self._points:
            return None
        return same_content(self.lab.image, "qcow2", Path(facts.images[ids[-1]]["vda"]), "qcow2")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Scene]]:
    base = tmp_path_factory.mktemp("bad")
    with (
        MoverProcess("source", base / "s", base / "source-state", base / "source.log") as source,
        MoverProcess("target", base / "t", base / "target-state", base / "target.log") as target,
    ):
        yield [Scene(target, target, base / "one"), Scene(source, target, base / "two")]


def _harm(data: st.DataObject, path: Path, last: int | None = None) -> str:
    """Cut the file, flip one bit in its first ``last`` bytes, empty a page of it, or remove it."""
    content = bytearray(path.read_bytes())
    limit = min(last or len(content), len(content))
    act = data.draw(st.sampled_from(["flip", "flip", "cut", "gone", "longer", *(["zeros"] if last is None else [])]))
    path.chmod(0o600)
    if act == "gone":
        path.unlink()
        return act
    if act == "flip":
        content[data.draw(st.integers(0, limit - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif act == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)):]
    elif act == "longer":
        content += bytes(data.draw(st.integers(1, 5000)))
    else:
        start = data.draw(st.integers(0, len(content) - 1))
        content[start:start + 512] = bytes(len(content[start:start + 512]))
    path.write_bytes(content)
    return act


def _check(scene: Scene) -> str:
    """Run the next transfer; nothing, or the source's content, is published."""
    try:
        outcome = scene.next_point()
    except UnderstudyError as exc:
        outcome = exc.code
    assert scene.published() in (None, True), outcome
    return outcome


@pytest.mark.parametrize("both", [0, 1], ids=["one mover", "two movers"])
def test_the_scene_is_incremental_if_nothing_is_wrong(scenes: list[Scene], both: int) -> None:
    scenes[both].reset()
    assert scenes[both].next_point() == "incremental"
    assert scenes[both].published() is True


@settings(max_examples=24)
@given(both=st.integers(0, 1), side=st.sampled_from(["source", "target"]), data=st.data())
def test_a_damaged_digest_file_costs_no_byte_and_no_scan(
        scenes: list[Scene], both: int, side: str, data: st.DataObject) -> None:
    scene = scenes[both]
    scene.reset()
    _harm(data, scene.source_copies()[-1] if side == "source" else scene.files("digests")[-1])
    assert _check(scene) == "incremental"
    assert scene.published() is True


@settings(max_examples=10)
@given(both=st.integers(0, 1), data=st.data())
def test_digest_files_damaged_on_both_sides_cost_no_byte(scenes: list[Scene], both: int, data: st.DataObject) -> None:
    scene = scenes[both]
    scene.reset()
    for path in (scene.source_copies()[-1], scene.files("digests")[-1]):
        _harm(data, path)
    assert _check(scene) == "incremental"
    assert scene.published() is True


@settings(max_examples=6)
@given(both=st.integers(0, 1), side=st.sampled_from(["source", "target"]))
def test_the_digests_of_an_older_point_under_a_newer_name_are_not_taken(
        scenes: list[Scene], both: int, side: str) -> None:
    scene = scenes[both]
    scene.reset()
    wrong = scene.source_copies()[-1] if side == "source" else scene.files("digests")[-1]
    if side == "target":
        scene.source_copies()[-1].unlink()
    shutil.copyfile(scene.files("digests")[0], wrong)
    assert _check(scene) == "incremental"
    assert scene.published() is True


@settings(max_examples=12)
@given(both=st.integers(0, 1), data=st.data())
def test_a_damaged_record_is_an_error_and_nothing_is_published(
        scenes: list[Scene], both: int, data: st.DataObject) -> None:
    scene = scenes[both]
    scene.reset()
    act = _harm(data, scene.record)
    outcome = _check(scene)
    # White space may be hit; a record that is gone is no replica: then a new one is begun, and is whole.
    assert outcome in ("replica", "incremental") or act == "gone", outcome


def _as_newer(points: list[Any]) -> tuple[list[Any], list[Any]]:
    old, new = points[0]["disks"][0], points[1]["disks"][0]
    return [points[1] | {"disks": [new | {"layer": old["layer"], "backing": "", "file_bytes": old["file_bytes"]}]}], []


def _merging(layer: str) -> Callable[[list[Any]], tuple[list[Any], list[Any]]]:
    return lambda points: (points[1:], [{"disk": "vda", "below": [layer or points[0]["disks"][0]["layer"]]}])


#: Fields that the two points exchange; one field of the newer point; and how the points are told.
_SWAPS = ("layer", "digest", "backing", "file_bytes", "size")
_ONE_FIELD: dict[str, tuple[str, list[Any]]] = {
    "another layer": ("layer", ["vda-p0001.qcow2", "vda-x.qcow2"]),
    "another digest file": ("digest", ["vda-p0001.digest", "vda-x.digest"]),
    "nothing below": ("backing", [""]),
    "another size": ("size", [512, MIB, SIZE - 512, SIZE + 512, 20 * MIB]),
    "another block size": ("block_size", [512, 4096, 512 * KIB, MIB, 4 * MIB]),
    "another length": ("file_bytes", [1, 1 << 40]),
}
_POINTS: dict[str, Callable[[list[Any]], tuple[list[Any], list[Any]]]] = {
    "only the old": lambda points: (points[:1], []),
    "only the new": lambda points: (points[1:], []),
    "in the wrong order": lambda points: (points[::-1], []),
    "being merged": _merging(""),
    "being merged with a stranger": _merging("vda-x.qcow2"),
    "an older layer as a newer point": _as_newer,
}


@settings(max_examples=24)
@given(both=st.integers(0, 1), data=st.data())
def test_a_hand_made_record_with_a_right_checksum_never_leads_to_wrong_content(
        scenes: list[Scene], both: int, data: st.DataObject) -> None:
    scene = scenes[both]
    scene.reset()
    document = json.loads(scene.record.read_text())
    document.pop("checksum")
    points = document["replica"]["points"]
    old, new = points[0]["disks"][0], points[1]["disks"][0]
    act = data.draw(st.sampled_from([*_SWAPS, *_ONE_FIELD, *_POINTS]))
    if act in _SWAPS:
        old[act], new[act] = new[act], old[act]
    elif act in _ONE_FIELD:
        field, values = _ONE_FIELD[act]
        place = points[1] if field == "block_size" else new
        place[field] = data.draw(st.sampled_from(values))
    else:
        document["replica"]["head_point"] = ""
        document["replica"]["points"], document["merging"] = _POINTS[act](points)
    scene.record.write_text(json.dumps(document | {"checksum": checksum(document)}))
    try:
        _check(scene)
    except AssertionError:
        # One who writes a record by hand can say that an older layer is a newer point; only reading it shows the lie.
        assert act in ("an older layer as a newer point", "only the old"), act
        _assert_found_by_verification(scene)


@settings(max_examples=20)
@given(both=st.integers(0, 1), which=st.integers(0, 1), data=st.data())
def test_a_layer_with_a_damaged_header_or_length_is_not_lain_on(
        scenes: list[Scene], both: int, which: int, data: st.DataObject) -> None:
    scene = scenes[both]
    scene.reset()
    _harm(data, scene.files("layers")[which], LAYER_HEADER)
    _check(scene)


@settings(max_examples=16)
@given(both=st.integers(0, 1), which=st.integers(0, 1), place=st.integers(0, 1 << 40), bit=st.integers(0, 7))
def test_a_flipped_bit_deep_in_a_layer_is_found_by_the_verification_of_the_next_point(
        scenes: list[Scene], both: int, which: int, place: int, bit: int) -> None:
    scene = scenes[both]
    scene.reset()
    path = scene.files("layers")[which]
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[LAYER_HEADER + place % (len(content) - LAYER_HEADER)] ^= 1 << bit
    path.write_bytes(content)
    try:
        _check(scene)
    except AssertionError:
        _assert_found_by_verification(scene)


def _assert_found_by_verification(scene: Scene) -> None:
    """The digests of a point are of the source: they tell what the layers below it spoilt."""
    facts = scene.lab.facts()
    assert facts.replica is not None
    newest = facts.replica.points[-1].id
    work = scene.lab.target.client.call(api.VerifyPoint(scene.lab.ref, newest), api.WorkStarted).work
    status = scene.lab.target.client.call(api.WorkQuery(work, 60.0), api.WorkStatus)
    (disk,) = status.verified
    assert disk.bad_count or disk.problem


@settings(max_examples=20)
@given(position=st.integers(0, HEADER_BYTES + 25 * 16 - 1), bit=st.integers(0, 7), cut=st.booleans())
def test_a_digest_file_that_was_spoilt_on_its_way_is_refused_by_the_one_that_receives_it(
        scenes: list[Scene], position: int, bit: int, cut: bool) -> None:
    scene = scenes[1]
    scene.reset()
    lab, (path, content) = scene.lab, (scene.files("digests")[-1], bytearray(scene.files("digests")[-1].read_bytes()))
    ref = api.DigestRef(lab.replica_id, "vda", lab.points[-1])
    good = scene.source_copies()[-1].read_bytes()
    if cut:
        del content[position % len(content):]
    else:
        content[position % len(content)] ^= 1 << bit
    with pytest.raises(ReplicaError):
        lab.source.client.store_digests(ref, iter([bytes(content)]))
    assert [found.read_bytes() for found in scene.source_copies()] == [good]
    assert path.exists()
