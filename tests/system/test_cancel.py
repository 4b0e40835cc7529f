"""Stopped at every step: the command ends with the truth, and with nothing left behind (S8, S9)."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.system.aftermath import Bench, bench
from tests.system.commands import StalledRun
from tests.system.installation import Installation
from tests.system.living import our_processes
from tests.system.places import fault_points, steps
from understudy.lab.lab import Lab

# From here on the point is published: a wish to cancel comes too late, and the run says success.
PUBLISHED = {"write.after", "commit.before", "commit.after"}
EXTERNAL = ["snapshot.after", "read.middle", "write.before"]


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Bench]:
    with bench(lab, "cancel", points=3) as made:
        made.installation.job("other", made.vm.name, options=("--suffix", "_other", "--snapshot-mode", "external"))
        made.installation.replicate("nightly")
        made.installation.replicate("other")
        made.check_points()
        made.check_points("cancel_other")
        yield made


@pytest.mark.parametrize("point", [*steps(), *fault_points("replication")])
def test_an_interrupted_run_leaves_nothing_and_tells_the_truth(scene: Bench, point: str) -> None:
    before = scene.point_ids()
    scene.write()
    with scene.installation.stalled("nightly", point) as run:
        _interrupt(scene.installation, run)
    scene.assert_clean()
    session = run.ended.json
    if point in PUBLISHED:
        assert (run.ended.status, session["state"]) == (0, "success"), run.ended
        assert scene.point_ids()[-1] == session["tasks"][0]["restore_point"] != before[-1]
    else:
        assert (run.ended.status, session["state"]) == (130, "cancelled"), run.ended
        assert session["tasks"][0]["state"] == "cancelled"
        assert run.ended.err.startswith("error: run job 'nightly': ")
        assert scene.point_ids() == before
    scene.check_points()


@pytest.mark.parametrize("point", EXTERNAL)
def test_an_interrupted_run_merges_its_delta(scene: Bench, point: str) -> None:
    scene.write()
    with scene.installation.stalled("other", point) as run:
        if point != "snapshot.after":  # there the guest is frozen still
            scene.write()
        _interrupt(scene.installation, run)
    assert (run.ended.status, run.ended.json["state"]) == (130, "cancelled"), run.ended
    scene.assert_clean("cancel_other")
    scene.check_points("cancel_other")


def test_a_session_is_stopped_by_another_command(scene: Bench) -> None:
    installation = scene.installation
    with installation.stalled("nightly", "read.middle") as run:
        (running,) = [item for item in installation.json("session", "list") if item["state"] == "running"]
        stopped = installation.json("session", "stop", str(running["id"]))
        assert stopped == {"id": running["id"], "state": "running"}
        time.sleep(0.5)
    assert (run.ended.status, run.ended.json["state"]) == (130, "cancelled"), run.ended
    scene.assert_clean()
    again = installation.run("session", "stop", str(running["id"]))
    assert (again.status, again.out) == (2, "")
    assert again.err == f"error: stop session {running['id']}: it has ended (cancelled); nothing is to be stopped\n"


def test_a_job_that_runs_is_not_run_twice(scene: Bench) -> None:
    with scene.installation.stalled("nightly", "read.middle") as run:
        refused = scene.installation.run("--json", "job", "run", "nightly")
        assert (refused.status, refused.out) == (2, "")
        assert "has not ended" in refused.err
    assert run.ended.status == 0


def test_a_second_job_is_executed_by_the_controller_that_lives(scene: Bench) -> None:
    installation = scene.installation
    with installation.stalled("nightly", "commit.before") as first:
        second = subprocess.Popen(
            installation.command("--json", "job", "run", "other"), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _wait(lambda: installation.json("session", "list", "--job", "other")[0]["state"] == "running")
        # Both tasks are of one VM: the second waits for the first, in the same process.
        running = our_processes(installation.lab.directory)
        assert len([line for line in running if "understudy.mover" in line]) == 1
    out, err = second.communicate(timeout=60)
    assert (second.returncode, err) == (0, ""), (out, err)
    assert first.ended.status == 0
    scene.assert_clean()
    scene.assert_clean("cancel_other")


def test_a_run_that_nobody_waits_for_can_be_followed(scene: Bench) -> None:
    installation = scene.installation
    queued = installation.json("job", "run", "nightly", "--no-wait")
    assert queued["state"] in ("queued", "running")
    _wait(lambda: installation.json("session", "show", str(queued["id"]))["state"] not in ("queued", "running"))
    session = installation.json("session", "show", str(queued["id"]))
    assert session["state"] == "success", session
    assert scene.point_ids()[-1] == session["tasks"][0]["restore_point"]
    scene.wait_processes_gone()
    scene.assert_clean()


def test_no_change_was_lost_after_all_these_cancellations(scene: Bench) -> None:
    scene.assert_shows_the_source("nightly")
    scene.verify_all()
    scene.assert_shows_the_source("other", "cancel_other")
    scene.verify_all("cancel_other")


def _interrupt(installation: Installation, run: StalledRun) -> None:
    """Ctrl-C, and wait until the controller has passed it on to the task."""
    run.process.send_signal(signal.SIGINT)
    newest = "SELECT cancel_requested FROM sessions ORDER BY id DESC LIMIT 1"
    _wait(lambda: _asked(installation, newest))
    time.sleep(0.5)


def _asked(installation: Installation, query: str) -> bool:
    """Whether a session's row says that it is to be cancelled; the command line does not tell."""
    with closing(sqlite3.connect(installation.home / "understudy.db")) as database:
        (asked,) = database.execute(query).fetchone()
    return bool(asked)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
