"""The promises of :class:`understudy.storage.Salvage`, tried on every store kind: a record made again from files."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.errors import NotFound, Refused, ReplicaError, UnderstudyError
from understudy.model.exclusion import Exclusion, pack
from understudy.model.extent import Extent
from understudy.model.replica import Baseline, Consistency, ReplicaIdentity, ReplicaState
from understudy.storage import ReplicaStore, open_store
from understudy.storage.values import DigestFacts, NewDisk, PointMeta, RebuiltReplica

KINDS = ("qcow2",)
NAME = "web 1_replica"
IDENTITY = ReplicaIdentity("id-1", NAME, "7", "nightly", "web 1", "source-uuid", "domain-uuid")
PART = 65536
SIZE = 4 * PART
LEFT_OUT = Exclusion("vda", pack([Extent(PART, PART)]), {"swap": PART}, {"vda1:/größe": "1 2"})
DEFINITION = "<domain><devices><disk><target dev='vda'/></disk></devices></domain>"


class Bench:
    """A store and what its points must show."""

    def __init__(self, store: ReplicaStore, root: Path) -> None:
        self.store = store
        self.root = root
        self.images: dict[str, bytes] = {}

    def publish(self, point: str, part: int, fill: int, chained: bool = True) -> None:
        """A point in which one part of the disk changed."""
        draft = self.store.begin_point(point, (NewDisk("vda", SIZE, chained and bool(self.images), "/images/web"),))
        draft.layer("vda").write_at(part * PART, bytes([fill]) * PART)
        draft.layer("vda").finish()
        draft.digest_path("vda").write_text(point)
        draft.publish(PointMeta(point, "2026-01-02T03:04:05+00:00", Consistency.FILESYSTEM, 4, 1 << 20,
                                Baseline(f"cp-{point}", ("vda",)), {"qemu": "7.2"}, DEFINITION, "bnZyYW0=",
                                exclusions=(LEFT_OUT,) if part == 2 else ()))
        before = self.images[list(self.images)[-1]] if chained and self.images else bytes(SIZE)
        self.images[point] = before[:part * PART] + bytes([fill]) * PART + before[(part + 1) * PART:]

    def lose(self) -> None:
        """The record is gone."""
        (self.root / "replica.json").unlink()

    def rebuild(self, known: ReplicaIdentity | None = None, *, write: bool = True) -> RebuiltReplica:
        """What a proxy does."""
        salvage = self.store.salvage(_facts, known)
        while wrong := [point.id for point in salvage.points() for disk in point.disks
                        if _content(salvage.image(disk)) != self.images[salvage.digest_path(disk).read_text()]]:
            salvage.refute(wrong[-1], "it differs")
        return salvage.rebuilt(write=write)

    def check(self, *points: str) -> None:
        """The record has these points, each with its content, and nothing is wrong with them."""
        assert [point.id for point in self.store.load().points] == list(points)
        for point in points:
            assert self.store.damage(point) == self.store.losses(point) == []
            assert _content(self.store.image(point, "vda")) == self.images[point]


def _facts(path: Path) -> DigestFacts | None:
    text = path.read_text()
    return None if text == "damaged" else DigestFacts(text, SIZE, 1 << 20)


def _content(image: Path) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory) / "raw"
        done = subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=False, capture_output=True)
        return raw.read_bytes() if done.returncode == 0 else b""


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A replica with three points, each on the one before."""
    store = open_store(str(request.param), tmp_path, NAME)
    with store.lock(1):
        store.create(IDENTITY)
        bench = Bench(store, tmp_path / NAME)
        for number in (1, 2, 3):
            bench.publish(f"p{number}", number, number)
        yield bench


def test_a_lost_record_is_said_and_made_again_as_it_was(made: Bench) -> None:
    before = made.store.load()
    assert made.store.problem() == ""
    made.lose()
    assert not made.store.exists()
    assert "replica.json is lost" in made.store.problem()
    with pytest.raises(ReplicaError, match="replica rebuild"):
        made.store.load()
    with pytest.raises(Refused, match="replica rebuild"):
        made.store.create(IDENTITY)
    assert made.rebuild(write=False).replica == before
    assert not made.store.exists()
    rebuilt = made.rebuild()
    assert rebuilt == RebuiltReplica(before, {}, (), ())
    assert made.store.load() == before
    made.check("p1", "p2", "p3")
    assert made.store.sweep() == []


@pytest.mark.parametrize("damage", [b"", b"{}", b"half", b"flip"])
def test_a_damaged_record_is_made_again(made: Bench, damage: bytes) -> None:
    before, record = made.store.load(), made.root / "replica.json"
    data = record.read_bytes()
    flipped = data[:200] + bytes([data[200] ^ 4]) + data[201:]
    record.write_bytes({b"half": data[:len(data) // 2], b"flip": flipped}.get(damage, damage))
    assert "replica.json is damaged" in made.store.problem()
    assert made.rebuild().replica == before
    made.check("p1", "p2", "p3")


def test_a_record_that_can_be_used_or_is_newer_is_not_made_again(made: Bench) -> None:
    with pytest.raises(Refused, match="no lost or damaged record"):
        made.rebuild()
    record = made.root / "replica.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    for act in (made.store.problem, made.rebuild):
        with pytest.raises(ReplicaError, match="use a newer Understudy"):
            act()


def test_nothing_is_rebuilt_where_nothing_is(tmp_path: Path) -> None:
    store = open_store("qcow2", tmp_path, NAME)
    assert store.problem() == ""
    with pytest.raises(NotFound):
        store.load()
    with store.lock(1), pytest.raises(Refused):
        store.salvage(_facts, IDENTITY)


def test_a_point_that_cannot_be_proved_is_left_out_and_its_files_stay(made: Bench) -> None:
    made.publish("p4", 0, 4)
    made.lose()
    (made.root / "digests" / "vda-p2.digest").write_text("damaged")
    rebuilt = made.rebuild()
    assert rebuilt.left_out == {"p2": "the digest file of disk vda is missing or damaged"}
    assert rebuilt.files == ("digests/vda-p2.digest", *(f"points/p2.{kind}" for kind in (
        "excluded", "json", "nvram", "xml")))
    made.check("p1", "p3", "p4")
    assert made.store.sweep() == []
    made.publish("p5", 1, 5)
    made.store.retire(("p1",))
    made.check("p3", "p4", "p5")
    made.store.retire(("p3", "p4"))
    made.check("p5")
    assert all((made.root / name).exists() for name in rebuilt.files)
    made.store.remove()
    assert [path.name for path in made.root.iterdir()] == [] if made.root.exists() else True


def test_the_points_above_a_left_out_oldest_one_stay_readable_and_are_merged_in_time(made: Bench) -> None:
    made.lose()
    (made.root / "points" / "p1.xml").unlink()
    rebuilt = made.rebuild()
    assert rebuilt.left_out == {"p1": "p1.xml is missing"}
    made.check("p2", "p3")
    assert made.store.sweep() == []
    assert (made.root / "layers" / "vda-p1.qcow2").exists()
    made.store.retire(("p2",))
    made.check("p3")


def test_a_flipped_bit_in_a_layer_leaves_out_what_shows_it(made: Bench) -> None:
    layer = made.root / "layers" / "vda-p2.qcow2"
    data = layer.read_bytes()
    at = data.index(b"\2" * PART) + 100
    layer.chmod(0o600)
    layer.write_bytes(data[:at] + b"\3" + data[at + 1:])
    made.publish("p4", 2, 4)  # it does not show the place
    made.lose()
    rebuilt = made.rebuild()
    assert set(rebuilt.left_out) == {"p2", "p3"}
    made.check("p1", "p4")


def test_a_missing_layer_leaves_out_what_lies_on_it(made: Bench) -> None:
    made.lose()
    (made.root / "layers" / "vda-p2.qcow2").unlink()
    assert set(made.rebuild().left_out) == {"p2", "p3"}
    made.check("p1")
    assert made.store.sweep() == []
    assert (made.root / "layers" / "vda-p3.qcow2").exists()


def test_if_nothing_can_be_proved_nothing_is_written(made: Bench) -> None:
    made.lose()
    for path in (made.root / "digests").iterdir():
        path.write_text("damaged")
    before = sorted(made.root.rglob("*"))
    with pytest.raises(ReplicaError, match="no restore point can be proved"):
        made.rebuild()
    assert sorted(made.root.rglob("*")) == before


@pytest.mark.parametrize("place", ["recorded", "committed", "rebased", "dropped"])
def test_a_record_that_is_lost_in_the_middle_of_a_merge_is_made_again(
        made: Bench, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("UNDERSTUDY_FAULT", f"retire.{place}=error")
    with pytest.raises(UnderstudyError, match="asked for an error"):
        made.store.retire(("p1",))
    monkeypatch.delenv("UNDERSTUDY_FAULT")
    made.lose()
    made.rebuild()
    points = [point.id for point in made.store.load().points]
    assert points[-2:] == ["p2", "p3"]
    made.check(*points)
    made.store.sweep()
    made.check(*points)
    made.publish("p4", 0, 4)
    made.store.retire(tuple(points[:-1]))
    made.check("p3", "p4")


def test_points_without_sidecars_say_less_and_have_no_baseline(made: Bench) -> None:
    identity = replace(IDENTITY, job_name="weekly")
    for path in (made.root / "points").glob("*.json"):
        path.unlink()
    (made.root / "replica.json.previous").unlink()
    made.lose()
    with pytest.raises(Refused, match="no file says whose replica it is"):
        made.rebuild()
    rebuilt = made.rebuild(identity)
    assert rebuilt.replica.identity == identity
    assert {(point.baseline, point.consistency, point.session) for point in rebuilt.replica.points} == {
        (None, Consistency.CRASH, 0)}
    assert "nothing tells the baseline of restore point p3" in rebuilt.notes[0]
    made.check("p1", "p2", "p3")
    assert made.store.load().points[0].nvram == "p1.nvram"


def test_the_record_before_tells_of_points_without_sidecars_but_not_their_baseline(made: Bench) -> None:
    for path in (made.root / "points").glob("*.json"):
        path.unlink()
    made.lose()
    replica = made.rebuild().replica
    assert [(point.consistency, point.session, point.baseline) for point in replica.points] == [
        (Consistency.FILESYSTEM, 4, None), (Consistency.FILESYSTEM, 4, None), (Consistency.CRASH, 0, None)]
    assert replica.identity == IDENTITY


def test_a_known_later_owner_is_believed_and_another_replica_is_not(made: Bench) -> None:
    made.lose()
    owner = replace(IDENTITY, job_id="8", job_name="weekly")
    assert made.rebuild(owner, write=False).replica.identity == owner
    assert made.rebuild(replace(owner, id="id-2"), write=False).replica.identity == IDENTITY


def test_an_untouched_head_is_found_again_and_a_used_one_counts_as_failover(made: Bench) -> None:
    head = made.store.bind_head("p2").files["vda"]
    before = made.store.load()
    made.lose()
    assert made.rebuild().replica == before
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 512", head], check=True, capture_output=True)
    made.lose()
    rebuilt = made.rebuild()
    assert (rebuilt.replica.state, rebuilt.replica.head_point) == (ReplicaState.FAILOVER, "p2")
    assert "failover undo" in rebuilt.notes[0]
    made.lose()
    (made.root / "digests" / "vda-p2.digest").write_text("damaged")
    rebuilt = made.rebuild()
    assert (rebuilt.replica.state, rebuilt.replica.head_point) == (ReplicaState.FAILOVER, "")
    assert made.store.sweep() == []
    assert Path(head).exists()


def test_a_renamed_but_unrecorded_point_is_found_too(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_FAULT", "publish.renamed=error")
    with pytest.raises(UnderstudyError, match="asked for an error"):
        made.publish("p4", 0, 4)
    monkeypatch.delenv("UNDERSTUDY_FAULT")
    made.images["p4"] = b"\4" * PART + made.images["p3"][PART:]
    made.lose()
    made.rebuild()
    made.check("p1", "p2", "p3", "p4")


def test_lost_and_altered_files_of_a_point_are_told(made: Bench) -> None:
    points = made.root / "points"
    (points / "p1.xml").unlink()
    (points / "p1.nvram").write_bytes(b"other")
    (made.root / "digests" / "vda-p1.digest").unlink()
    assert made.store.losses("p1") == [
        "p1.nvram is not as it was published", "p1.xml is missing", "disk vda: digest file vda-p1.digest is missing"]
    (points / "p2.json").write_text("{}")
    assert made.store.losses("p2") == []
    (points / "p2.nvram").unlink()
    assert made.store.losses("p2") == ["p2.nvram is missing"]
    assert made.store.damage("p1") == made.store.damage("p2") == []


def test_a_rebuilt_record_knows_what_its_points_leave_out(made: Bench) -> None:
    made.lose()
    made.rebuild()
    assert [made.store.exclusions(point) for point in ("p1", "p2", "p3")] == [(), (LEFT_OUT,), ()]
    made.check("p1", "p2", "p3")
    made.store.retire(("p1", "p2"))
    assert not (made.root / "points" / "p2.excluded").exists()
    assert made.store.sweep() == []


@pytest.mark.parametrize("damage", [None, b"", b"{}"])
def test_a_point_is_no_worse_to_start_from_because_it_is_lost_what_it_leaves_out(
    made: Bench, damage: bytes | None
) -> None:
    path = made.root / "points" / "p2.excluded"
    path.unlink() if damage is None else path.write_bytes(damage)
    made.lose()
    assert [point.id for point in made.rebuild().replica.points] == ["p1", "p2", "p3"]
    with pytest.raises(ReplicaError, match=r"p2.excluded is (missing|damaged)"):
        made.store.exclusions("p2")
    assert made.store.damage("p2") == []
    assert all(text.startswith("disk vda: ") for text in made.store.losses("p2"))


def test_without_sidecar_and_record_before_the_file_itself_tells_that_it_counts(made: Bench) -> None:
    for path in [*(made.root / "points").glob("*.json"), made.root / "replica.json.previous"]:
        path.unlink()
    made.lose()
    made.rebuild(IDENTITY)
    assert made.store.exclusions("p2") == (LEFT_OUT,)


def test_what_another_point_leaves_out_is_not_taken(made: Bench) -> None:
    for path in (made.root / "points").glob("*.json"):
        path.unlink()
    draft = made.store.begin_point("p4", (NewDisk("vda", SIZE, True, "/images/web"),))
    draft.abandon()
    made.publish("p5", 2, 9)
    points = made.root / "points"
    (points / "p5.excluded").write_bytes((points / "p2.excluded").read_bytes())
    with pytest.raises(ReplicaError, match="damaged"):
        made.store.exclusions("p5")


def test_what_does_not_fit_the_disks_is_not_published(made: Bench) -> None:
    for wrong in (Exclusion("vdb", LEFT_OUT.packed), Exclusion("vda", pack([Extent(0, 512)])),
                  Exclusion("vda", pack([Extent(SIZE, PART)]))):
        draft = made.store.begin_point("p4", (NewDisk("vda", SIZE, True, "/images/web"),))
        draft.layer("vda").finish()
        draft.digest_path("vda").write_text("p4")
        meta = PointMeta("p4", "2026-01-02T03:04:05+00:00", Consistency.FILESYSTEM, 4, 1 << 20, None, {}, DEFINITION,
                         exclusions=(wrong,))
        with pytest.raises(ReplicaError, match="leaves out"):
            draft.publish(meta)
        draft.abandon()
        assert made.store.sweep() == []
    made.check("p1", "p2", "p3")
