"""Crashes that are not in the matrix (see matrix.py): external snapshots, sessions nobody ends, guests that go off."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.system.aftermath import Bench, bench
from understudy.lab.lab import Lab

POINTS_KEPT = 2

EXTERNAL = ["snapshot.after", "read.middle", "write.after", "commit.before"]


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Bench]:
    with bench(lab, "crash", points=POINTS_KEPT) as made:
        options = ("--points", "2", "--suffix", "_x", "--snapshot-mode", "external")
        made.installation.job("external", made.vm.name, options=options)
        for _ in range(POINTS_KEPT):
            made.installation.replicate("nightly")
        made.check_points()
        yield made


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


def test_a_guest_frozen_by_a_controller_that_died_with_the_daemon_is_thawed_when_the_daemon_is_back(
    scene: Bench,
) -> None:
    alpha = scene.installation.lab.alpha
    scene.write()
    with scene.installation.stalled("nightly", "snapshot.before") as broken:
        alpha.kill_libvirtd()
        broken.process.kill()
    alpha.start_libvirtd()
    scene.wait_processes_gone()
    scene.assert_thawed()
    scene.write()
    scene.assert_healed("nightly")


@pytest.mark.parametrize("job", ["nightly", "external"])
def test_a_libvirt_daemon_restarted_before_the_read_harms_nothing(scene: Bench, job: str) -> None:
    replica = scene.replica if job == "nightly" else f"{scene.vm.name}_x"
    before = scene.point_ids(replica)
    scene.write()
    with scene.installation.stalled(job, "read.before") as broken:
        scene.installation.lab.alpha.restart()
    scene.assert_thawed()
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


def _kill_controller(scene: Bench, job: str, point: str, replica: str) -> None:
    """Kill the controller at a fault point of its own; the guest goes on writing."""
    scene.write()
    answer = scene.run_broken(job, f"{point}=kill")
    assert answer.status == -signal.SIGKILL, (point, answer)
    scene.wait_processes_gone()
    scene.assert_thawed()
    scene.check_points(replica)
    scene.write()


def _assert_reported_dead(scene: Bench, session_id: int) -> None:
    session = scene.installation.json("session", "show", str(session_id))
    assert session["state"] == "failed"
    assert "controller ended unexpectedly" in session["tasks"][0]["error"]
