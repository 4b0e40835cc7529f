"""Killed at every step: the next plain run heals, no restore point is harmed, and nothing is left (S2, S3, S7, S9)."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import understudy
from tests.system.aftermath import Bench, bench
from understudy.lab.lab import Lab
from understudy.model.session import Step
from understudy.replication import run

POINTS_KEPT = 2

# Steps that run inside another one, and are only reported.
WITHOUT_FAULT_POINT = {Step.SEND}
STEPS = [step for step in Step if step not in WITHOUT_FAULT_POINT]
CONTROLLER = [*(f"{step}.{side}" for step in STEPS for side in ("before", "after")), "read.middle"]
EXTERNAL = ["snapshot.after", "read.middle", "write.after", "commit.before"]

# Points in the mover that come before the new point is on record: the run fails, and the old baseline is the one.
BEFORE_RECORD = ["mover.copy.finish", "mover.publish.before", "publish.layers_durable", "publish.renamed"]
# The point is on record, and the controller never heard of it: it goes back to the old baseline, and says so next time.
UNHEARD = ["publish.recorded", "mover.publish.after"]
# The point is published; what is left to do is tidying up.
TIDYING = [
    "head.dropped", "head.renamed", "retire.recorded", "retire.committed", "retire.rebased", "retire.dropped",
    "mover.digests.keep",
]
# On the way of a layer that comes from another proxy, and of one that is continued after that.
KEEPING = ["checkpoint.begun", "checkpoint.synced", "checkpoint.recorded"]
TAKING_OVER = ["takeover.journal", "takeover.layer", "takeover.dropped", "takeover.durable", "takeover.digests"]
# Not on the way of a run.
ELSEWHERE = {"failover.recorded", "undo.stopped", "undo.bound", "verify.position"}


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Bench]:
    with bench(lab, "crash", points=POINTS_KEPT) as made:
        options = ("--points", "2", "--suffix", "_x", "--snapshot-mode", "external")
        made.installation.job("external", made.vm.name, options=options)
        made.installation.ok("proxy", "add", "second")
        wired = ("--points", "2", "--suffix", "_w", "--source-proxy", "second", "--target-proxy", "local")
        made.installation.job("wired", made.vm.name, options=wired)
        for _ in range(POINTS_KEPT):
            made.installation.replicate("nightly")
        made.check_points()
        yield made


def test_every_fault_point_of_a_run_is_in_the_matrix() -> None:
    sources = Path(next(iter(understudy.__path__))).rglob("*.py")
    literal = {name for path in sources for name in re.findall(r'fault_point\("([^"]+)"\)', path.read_text())}
    covered = {*CONTROLLER, *BEFORE_RECORD, *UNHEARD, *TIDYING, *KEEPING, *TAKING_OVER, *ELSEWHERE}
    assert literal - covered == set()
    told = set(re.findall(r"journal\.step\(Step\.(\w+)\)", Path(run.__file__).read_text()))
    assert told == {step.name for step in STEPS}


@pytest.mark.parametrize("point", CONTROLLER)
def test_a_run_after_a_killed_controller_is_incremental_and_finds_nothing_left(scene: Bench, point: str) -> None:
    _kill_controller(scene, "nightly", point, scene.replica)
    healed = scene.assert_healed("nightly")
    _assert_reported_dead(scene, healed["id"] - 1)


@pytest.mark.parametrize("point", BEFORE_RECORD)
def test_a_mover_that_dies_before_the_point_is_recorded_fails_the_run(scene: Bench, point: str) -> None:
    before = scene.point_ids()
    scene.write()
    answer = scene.run_broken("nightly", f"{point}=kill")
    assert answer.status == 1
    assert "proxy" in answer.json["tasks"][0]["error"]
    assert scene.point_ids() == before
    scene.wait_processes_gone()
    scene.write()
    scene.assert_healed("nightly")


@pytest.mark.parametrize("point", UNHEARD)
def test_a_point_recorded_by_a_mover_that_dies_is_kept_and_the_next_run_scans(scene: Bench, point: str) -> None:
    before = scene.point_ids()
    scene.write()
    assert scene.run_broken("nightly", f"{point}=kill").status == 1
    assert scene.point_ids()[: len(before)] == before
    assert len(scene.point_ids()) == len(before) + 1
    scene.check_points()
    scene.write()
    scene.assert_healed("nightly", reasons=("checkpoint_missing",))


@pytest.mark.parametrize("point", TIDYING)
def test_a_mover_that_dies_after_publish_does_not_fail_the_run(scene: Bench, point: str) -> None:
    scene.write()
    answer = scene.run_broken("nightly", f"{point}=kill")
    assert answer.status == 0, answer
    (task,) = answer.json["tasks"]
    assert task["state"] == "warning"
    assert any("proxy" in warning for warning in task["warnings"]), task
    assert scene.point_ids()[-1] == task["restore_point"]
    scene.check_points()
    scene.write()
    scene.assert_healed("nightly")


@pytest.mark.parametrize("point", KEEPING)
def test_a_layer_whose_mover_dies_while_it_comes_is_continued_by_the_next_run(scene: Bench, point: str) -> None:
    _break_wired(scene, point)
    scene.write()
    scene.assert_healed("wired", f"{scene.vm.name}_w")


@pytest.mark.parametrize("point", TAKING_OVER)
def test_a_mover_that_dies_while_a_layer_is_taken_over_leaves_one_that_heals(scene: Bench, point: str) -> None:
    _break_wired(scene, "checkpoint.recorded")
    _break_wired(scene, point)
    scene.write()
    scene.assert_healed("wired", f"{scene.vm.name}_w")


def test_no_change_was_lost_on_the_wire_either(scene: Bench) -> None:
    scene.assert_shows_the_source("wired", f"{scene.vm.name}_w")
    scene.verify_all(f"{scene.vm.name}_w")


def test_no_change_was_lost_and_every_point_verifies_after_all_these_crashes(scene: Bench) -> None:
    scene.assert_shows_the_source("nightly")
    scene.verify_all()


@pytest.mark.parametrize("point", EXTERNAL)
def test_an_external_snapshot_of_a_killed_controller_is_merged_by_the_next_run(scene: Bench, point: str) -> None:
    if not scene.place(f"{scene.vm.name}_x").exists():
        scene.installation.replicate("external")
    scene.check_points(f"{scene.vm.name}_x")
    _kill_controller(scene, "external", point, f"{scene.vm.name}_x")
    session = scene.installation.replicate("external")
    scene.check_points(f"{scene.vm.name}_x")
    scene.assert_clean(f"{scene.vm.name}_x")
    (disk,) = session["tasks"][0]["disks"]
    # Whether QEMU lived on all the time is not known, so that the dirty map is not trusted once.
    assert (disk["mode"], disk["reason"]) == ("digest_scan", "snapshot_left")
    _assert_reported_dead(scene, session["id"] - 1)


def test_no_change_was_lost_between_deltas_and_disks(scene: Bench) -> None:
    scene.assert_shows_the_source("external", f"{scene.vm.name}_x")
    scene.verify_all(f"{scene.vm.name}_x")


def test_a_point_that_the_dead_controller_never_noted_is_the_newest_for_everybody(scene: Bench) -> None:
    _kill_controller(scene, "nightly", "commit.before", scene.replica)
    newest = scene.point_ids()[-1]
    assert scene.installation.json("replica", "verify", scene.replica)["point"] == newest
    assert scene.installation.json("replica", "verify", scene.replica, "--point", newest)["ok"]
    scene.assert_healed("nightly")


def test_a_session_of_a_dead_controller_is_ended_by_a_stop(scene: Bench) -> None:
    _kill_controller(scene, "nightly", "read.before", scene.replica)
    dead = scene.installation.json("session", "list", "--job", "nightly")[0]["id"]
    assert scene.installation.json("session", "stop", str(dead)) == {"id": dead, "state": "failed"}
    again = scene.installation.run("session", "stop", str(dead))
    assert (again.status, again.err) == (
        2, f"error: stop session {dead}: it has ended (failed); nothing is to be stopped\n")
    _assert_reported_dead(scene, dead)
    scene.assert_healed("nightly")


def test_a_mover_killed_while_it_reads_fails_the_run_and_the_next_heals(scene: Bench) -> None:
    scene.write()
    with scene.installation.stalled("nightly", "mover.copy.finish") as broken:
        os.kill(_mover_of(broken.process.pid), signal.SIGKILL)
    assert broken.ended.status == 1
    assert "proxy" in broken.ended.json["tasks"][0]["error"]
    assert broken.ended.err.count("\n") == 1
    scene.assert_healed("nightly")


def test_a_hypervisor_killed_before_the_read_costs_scans_and_no_point(scene: Bench) -> None:
    before = scene.point_ids()
    scene.write()
    with scene.installation.stalled("nightly", "read.before") as broken:
        scene.vm.process().signal(signal.SIGKILL)
        scene.vm.wait_off()
    assert broken.ended.status == 0
    assert scene.point_ids()[-1] not in before
    scene.check_points()
    scene.vm.start()
    scene.vm.wait_agent()
    scene.write()
    scene.assert_healed("nightly", reasons=("no_baseline",))
    scene.assert_healed("nightly")


def test_a_guest_powered_off_before_the_read_is_read_where_it_lies_in_the_same_run(scene: Bench) -> None:
    before = scene.point_ids()
    scene.write()
    with scene.installation.stalled("nightly", "read.before") as broken:
        scene.vm.destroy()
    assert broken.ended.status == 0
    assert scene.point_ids()[-1] not in before
    scene.check_points()
    scene.vm.start()
    scene.vm.wait_agent()
    scene.installation.replicate("nightly")
    scene.assert_healed("nightly")


@pytest.mark.parametrize("job", ["nightly", "external"])
def test_a_libvirt_daemon_restarted_before_the_read_harms_nothing(scene: Bench, job: str) -> None:
    replica = scene.replica if job == "nightly" else f"{scene.vm.name}_x"
    before = scene.point_ids(replica)
    scene.write()
    with scene.installation.stalled(job, "read.before") as broken:
        scene.installation.lab.alpha.restart()
    assert broken.ended.status in (0, 1), broken.ended
    assert scene.point_ids(replica)[-1:] != before[-1:] or broken.ended.status == 1
    scene.check_points(replica)
    scene.write()
    scene.installation.replicate(job)
    scene.check_points(replica)
    scene.assert_clean(replica)


def test_no_change_was_lost_with_the_daemon_the_guest_or_the_hypervisor(scene: Bench) -> None:
    scene.assert_shows_the_source("nightly")
    scene.verify_all()


def _mover_of(controller: int) -> int:
    """The process id of the mover that a controller started."""
    children = Path(f"/proc/{controller}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    (mover,) = [pid for pid in pids if b"understudy.mover" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return mover


def _kill_controller(scene: Bench, job: str, point: str, replica: str) -> None:
    """Kill the controller at a fault point of its own; the guest goes on writing."""
    scene.write()
    answer = scene.run_broken(job, f"{point}=kill")
    assert answer.status == -signal.SIGKILL, (point, answer)
    scene.wait_processes_gone()
    scene.assert_thawed()
    scene.check_points(replica)
    scene.write()


def _break_wired(scene: Bench, point: str) -> None:
    """Kill the target mover of the job with two proxies; the run fails, and no point is harmed."""
    replica = f"{scene.vm.name}_w"
    if not scene.place(replica).exists():
        scene.installation.replicate("wired")
    before = scene.point_ids(replica)
    scene.write()
    answer = scene.run_broken("wired", f"{point}=kill")
    assert answer.status == 1, (point, answer)
    assert "proxy" in answer.json["tasks"][0]["error"]
    assert scene.point_ids(replica) == before
    scene.wait_processes_gone()
    scene.check_points(replica)


def _assert_reported_dead(scene: Bench, session_id: int) -> None:
    session = scene.installation.json("session", "show", str(session_id))
    assert session["state"] == "failed"
    assert "controller ended unexpectedly" in session["tasks"][0]["error"]
