"""What dead sessions left, as a proxy lists it, and what it removes of that."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_mover import SIZE, Lab
from tests.unit.mover.mover_lab import make_image, run, write
from understudy.context import Context
from understudy.errors import Fenced, UsageError
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.process import MoverProcess
from understudy.replication.work import finish
from understudy.storage.values import StoreLeftovers
from understudy.units import MIB

TAG = "understudy-"
DELTA = f"{TAG}aaaaaaaaaaaa-deadbeef-1-vda.delta"


@pytest.fixture(scope="module")
def mover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MoverProcess]:
    base = tmp_path_factory.mktemp("movers")
    with MoverProcess("local", base / "run", base / "state", base / "log") as started:
        yield started


@pytest.fixture
def lab(mover: MoverProcess, tmp_path: Path) -> Lab:
    """A replica with one point."""
    (tmp_path / "ds").mkdir()
    made = Lab(mover, mover, tmp_path, make_image(tmp_path / "source.qcow2", SIZE))
    write(made.image, 1, (0, MIB))
    made.replicate(TransferMode.FULL)
    return made


def listed(mover: MoverProcess, directory: Path, *images: tuple[Path, str]) -> dict[str, bool]:
    places = (str(directory), str(directory / "none"))
    request = api.ListTagged(places, TAG, tuple((str(path), kind) for path, kind in images))
    answer = mover.client.call(request, api.TaggedFiles)
    assert {file.directory for file in answer.files} <= {str(directory)}
    return {file.name: file.in_use for file in answer.files}


def survey(lab: Lab) -> api.SurveyedReplica:
    request = api.SurveyDatastore("qcow2", str(lab.directory / "ds"))
    answer = lab.target.client.call(request, api.DatastoreSurvey)
    assert answer.exists
    (replica,) = answer.replicas
    return replica


def test_only_plain_files_and_sockets_that_begin_as_ours_are_listed(mover: MoverProcess, tmp_path: Path) -> None:
    for name in (f"{TAG}a.sock", f"{TAG}b.scratch", f"x-{TAG}c", "other"):
        (tmp_path / name).touch()
    (tmp_path / f"{TAG}directory").mkdir()
    (tmp_path / f"{TAG}link").symlink_to(tmp_path / "other")
    assert listed(mover, tmp_path) == {f"{TAG}a.sock": False, f"{TAG}b.scratch": False}
    with pytest.raises(UsageError):
        mover.client.call(api.ListTagged((str(tmp_path),), "", ()), api.TaggedFiles)


def test_a_delta_below_a_snapshot_of_somebody_else_is_in_use_and_is_not_removed(
    mover: MoverProcess, tmp_path: Path
) -> None:
    base, delta, top = tmp_path / "base.qcow2", tmp_path / DELTA, tmp_path / "their-snapshot.qcow2"
    make_image(base, MIB)
    for upper, lower in ((delta, base), (top, delta)):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", lower.name, upper.name],
                       check=True, cwd=tmp_path)  # fmt: skip
    assert listed(mover, tmp_path, (top, "qcow2")) == {DELTA: True}
    assert listed(mover, tmp_path, (base, "qcow2"), (tmp_path / "gone.qcow2", "qcow2")) == {DELTA: False}
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(b"no image")
    assert listed(mover, tmp_path, (broken, "qcow2")) == {DELTA: True}
    for images in (((str(top), "qcow2"),), ((str(broken), "qcow2"),)):
        removed = mover.client.call(api.RemoveTagged(str(tmp_path), TAG, (), images), api.Removed)
        assert removed.paths == ()
        assert delta.exists()
    images = ((str(base), "qcow2"),)
    assert mover.client.call(api.RemoveTagged(str(tmp_path), TAG, (), images), api.Removed).paths == (str(delta),)
    assert run("qemu-img", "check", base)


def test_a_replica_is_surveyed_without_its_lock_and_swept_under_it(lab: Lab) -> None:
    clean = survey(lab)
    assert (clean.name, clean.problem, clean.leftovers) == ("web 1", "", StoreLeftovers())
    assert clean.replica == lab.facts().replica
    stray = lab.directory / "ds" / "web 1" / "layers" / "vda-p9.qcow2.partial"
    foreign = stray.with_name("notes.txt")
    stray.touch()
    foreign.touch()
    draft, _ = lab.begin(chained=True)
    assert stray.exists() is False  # a session sweeps for itself
    assert len(survey(lab).leftovers.unneeded) > 0  # its own files show
    stray.touch()
    owner = api.OwnedReplica(lab.ref, attempt=lab.attempt)
    with pytest.raises(Fenced):
        finish(Context(), lab.target.client, api.SweepReplica(owner, keep_continuable=True))
    lab.target.client.call(api.ReleaseDraft(draft), api.Nothing)
    finish(Context(), lab.target.client, api.SweepReplica(owner, keep_continuable=True))
    assert (stray.exists(), foreign.exists()) == (False, True)
    assert survey(lab).leftovers == clean.leftovers
    lab.check()


def test_a_draft_of_a_dead_session_ends_when_its_replica_is_swept(lab: Lab) -> None:
    lab.begin(chained=True)
    owner = api.OwnedReplica(lab.ref, attempt=lab.attempt + 1)
    finish(Context(), lab.target.client, api.SweepReplica(owner, keep_continuable=True))
    assert survey(lab).leftovers.unneeded == ()


def test_a_replica_that_cannot_be_read_hides_no_other(lab: Lab) -> None:
    broken = lab.directory / "ds" / "broken"
    broken.mkdir()
    (broken / "replica.json").write_text("{")
    answer = lab.target.client.call(api.SurveyDatastore("qcow2", str(lab.directory / "ds")), api.DatastoreSurvey)
    assert [(item.name, bool(item.problem), item.replica is None) for item in answer.replicas] == [
        ("broken", True, True), ("web 1", False, False),
    ]  # fmt: skip
    gone = api.SurveyDatastore("qcow2", str(lab.directory / "gone"))
    assert not lab.target.client.call(gone, api.DatastoreSurvey).exists


def test_digest_copies_and_what_is_served_are_listed(lab: Lab) -> None:
    copies = lab.source.client.call(api.ListCopies(), api.DigestCopyList).copies
    assert [(copy.point, Path(copy.path).is_file()) for copy in copies if copy.replica_id == lab.replica_id] == [
        (lab.points[-1], True)
    ]
    before = lab.source.client.call(api.HeldQuery(), api.HeldFacts)
    opened = lab.source.client.call(api.OpenExport(str(lab.image), "qcow2", "", f"{TAG}x-1"), api.OpenedExport)
    held = lab.source.client.call(api.HeldQuery(), api.HeldFacts)
    assert set(held.exports) - set(before.exports) == {f"{TAG}x-1"}
    lab.source.client.call(api.CloseExport(opened.id), api.Nothing)
    assert lab.source.client.call(api.HeldQuery(), api.HeldFacts) == before
