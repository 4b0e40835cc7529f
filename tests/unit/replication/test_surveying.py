"""What is left out: found once, stored with the point, applied by whoever reads; nothing where that fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from tests.unit.replication.ends import Copy, one_end, plan
from tests.unit.replication.test_run import JOB, OLD, World
from understudy.context import Context
from understudy.errors import MoverError, ReplicaError, TransferError, UnderstudyError
from understudy.model.exclusion import DiskSurvey, Exclusion, pack
from understudy.model.extent import PART, Extent
from understudy.model.inventory import VmState
from understudy.model.replica import Baseline
from understudy.model.session import Step, StepState
from understudy.model.snapshot import ImageDisk
from understudy.model.transfer import Reason, TransferMode
from understudy.mover import api
from understudy.replication import surveying
from understudy.replication.held import HeldTask
from understudy.replication.surveying import surveyed, wants_survey

SWAPLESS = replace(JOB, exclude_swap=True, masks=(("", "/tmp/**"), ("web", "/a"), ("other", "/b")))
FORMER = Exclusion("vda", pack([Extent(0, 4 * PART)]), {"swap": 4 * PART}, {"vda1:/x": "1"})
NOW = Exclusion("vda", pack([Extent(PART, 5 * PART)]), {"swap": 3 * PART, "mask": 2 * PART}, {"vda1:/y": "2"})
LEAVING = replace(OLD, excluded="p0.excluded")


def world(**changes: Any) -> World:
    made = World(points=(LEAVING,), job=SWAPLESS, surveys=(DiskSurvey(NOW, 7, ("vda2 is encrypted",)),))
    made.exclusions["p0"] = (FORMER,)
    return replace(made, **changes)


def test_what_the_survey_finds_is_read_as_zero_and_published() -> None:
    made = world()
    made.run()
    assert made.read is not None
    assert made.meta is not None
    assert made.read.mode is TransferMode.INCREMENTAL
    assert (made.read.excluded, made.read.formerly_excluded, made.read.once_excluded) == (NOW.packed, FORMER.packed, "")
    assert made.meta.exclusions == (NOW,)
    assert made.at("snapshot") < made.at("survey") < made.at("copy")
    assert list(made.steps) == [*list(Step)[:6], Step.SEND, Step.WRITE, Step.COMMIT]
    assert made.steps[Step.SURVEY] is StepState.SUCCESS
    last = made.reports[-1]
    assert (last.excluded, last.notes) == ({"swap": 3 * PART, "mask": 2 * PART}, ("vda2 is encrypted",))
    (disk,) = made.surveyed.disks if made.surveyed else ()
    assert disk == api.SurveyedDisk("vda", api.NbdSource("/s", "vda", ""), OLD.disks[0].size)
    assert made.surveyed == api.SurveyDisks((disk,), True, ("/tmp/**", "/a"), False, False, (FORMER,))


def test_a_job_that_leaves_out_nothing_makes_no_survey_and_copies_what_was_left_out_before() -> None:
    made = world(job=JOB)
    made.run()
    assert made.read is not None
    assert made.meta is not None
    assert "survey" not in made.events
    assert Step.SURVEY not in made.steps
    assert (made.read.excluded, made.read.formerly_excluded) == ("", FORMER.packed)
    assert made.meta.exclusions == ()
    assert not wants_survey(JOB, "web")
    assert wants_survey(replace(JOB, exclude_free=True), "web")
    assert not wants_survey(replace(JOB, masks=(("other", "/b"),)), "web")


@pytest.mark.parametrize(("where", "error"), [
    ("survey", MoverError("proxy", "gone")), ("surveying", UnderstudyError("survey", "out of memory")),
    ("surveying", TransferError("survey", "cannot be read")),
])
def test_a_survey_that_fails_leaves_out_nothing_and_fails_no_task(where: str, error: UnderstudyError) -> None:
    made = world(breaks={where: error})
    made.run()
    assert made.read is not None
    assert (made.read.excluded, made.read.formerly_excluded) == ("", FORMER.packed)
    (note,) = made.reports[-1].notes
    assert note.startswith("nothing is left out: ")
    assert made.steps[Step.SURVEY] is StepState.FAILED
    assert made.warnings == []
    assert error.why in note


@pytest.mark.parametrize("surveys", [
    (), (DiskSurvey(Exclusion("vda", "nonsense")),), (DiskSurvey(Exclusion("vda", pack([Extent(0, 512)]))),),
    (DiskSurvey(Exclusion("vda", pack([Extent(0, 1 << 50)]))),), (DiskSurvey(Exclusion("vda", "", {"swap": -1})),),
])
def test_a_survey_that_makes_no_sense_leaves_out_nothing(surveys: tuple[DiskSurvey, ...]) -> None:
    made = world(surveys=surveys)
    made.run()
    assert made.read is not None
    assert made.read.excluded == ""
    assert made.reports[-1].notes


def test_a_survey_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "SURVEY_S", -1.0)
    made = world()
    made.run()
    assert made.read is not None
    assert made.read.excluded == ""
    assert "took longer" in made.reports[-1].notes[0]
    assert "stop" in made.events


def test_the_operator_can_end_a_task_while_it_surveys() -> None:
    made = world(cancel_at="survey")
    with pytest.raises(UnderstudyError, match="cancel"):
        made.run()
    assert "publish" not in made.events
    assert "snapshot ended" in made.events


@pytest.mark.parametrize("full_scan", [False, True])
def test_lost_exclusions_of_the_newest_point_are_a_scan_with_a_warning(full_scan: bool) -> None:
    made = world(breaks={"read exclusions p0": ReplicaError("read p0.excluded", "it is damaged")})
    made.run(full_scan)
    assert made.read is not None
    assert made.read.mode is TransferMode.DIGEST_SCAN
    assert (made.read.excluded, made.read.formerly_excluded, made.read.source.dirty_context) == (NOW.packed, "", "")
    assert made.reports[-1].reason is Reason.EXCLUSIONS_LOST
    assert any("it is damaged" in text for text in made.warnings)
    assert made.surveyed is not None
    assert made.surveyed.former == ()


@pytest.mark.parametrize("baseline", [Baseline("cp-old", ("vda",), "p0", "1"), None])
def test_what_the_point_of_older_tracking_left_out_counts_too(baseline: Baseline | None) -> None:
    """Without its sidecar nobody knows what a point left out: a rebuilt record has no baseline then."""
    newest = replace(OLD, id="p1", excluded="")
    made = world(points=(replace(LEAVING, baseline=baseline), newest))
    made.run()
    assert made.read is not None
    if baseline is None:
        assert made.reports[-1].reason is Reason.EXCLUSIONS_LOST
        assert made.read.mode is TransferMode.DIGEST_SCAN
    else:
        assert (made.read.since_point, made.read.once_excluded) == ("p0", FORMER.packed)
        assert made.read.formerly_excluded == ""


def test_a_resumed_task_leaves_out_the_same_without_another_survey() -> None:
    made = world()
    made.run()
    held = next(held for held in made.held if isinstance(held, HeldTask))
    again = world(surveys=())
    again.resume(replace(held, works={}, spec=replace(held.spec, point="p9")))
    assert again.read is not None
    assert again.meta is not None
    assert "survey" not in again.events
    assert (again.read.excluded, again.read.formerly_excluded) == (NOW.packed, FORMER.packed)
    assert again.meta.exclusions == (NOW,)


def test_an_image_is_opened_once_for_survey_and_copy_and_closed_once() -> None:
    ends = one_end()
    ends.source_mover.problems[api.SurveyDisks] = MoverError("proxy", "too old")
    run = Copy(ends, (plan("vda"),), (ImageDisk("vda", "/images/a", "qcow2", "b"),), state=VmState.RUNNING)
    held = replace(run.held, spec=replace(run.held.spec, job=replace(run.held.spec.job, exclude_swap=True)))
    with surveyed(Context(), cast("Any", ends), held) as found:
        assert list(found.exports) == ["vda"]
        assert ends.source_mover.of(api.CloseExport) == []
        copied = Copy(ends, (plan("vda"),), run.disks, exports=dict(found.exports))
        copied.run()
    assert len(ends.source_mover.of(api.OpenExport)) == len(ends.source_mover.of(api.CloseExport)) == 1
    (copy,) = ends.source_mover.of(api.CopyDisk)
    assert copy.read.source == found.exports["vda"].source


def test_an_image_is_closed_if_the_copy_never_begins() -> None:
    ends = one_end()
    ends.source_mover.problems[api.SurveyDisks] = MoverError("proxy", "too old")
    held = Copy(ends, (plan("vda"),), (ImageDisk("vda", "/images/a", "qcow2", "b"),)).held
    held = replace(held, spec=replace(held.spec, job=replace(held.spec.job, exclude_swap=True)))
    with pytest.raises(ZeroDivisionError), surveyed(Context(), cast("Any", ends), held):
        raise ZeroDivisionError
    assert len(ends.source_mover.of(api.OpenExport)) == len(ends.source_mover.of(api.CloseExport)) == 1
