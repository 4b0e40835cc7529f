"""``understudy sweep``: lists and removes exactly what dead sessions left, and nothing of anybody else (S7)."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.system.aftermath import Bench, bench, left_on_domain
from understudy.lab.lab import Lab
from understudy.model.snapshot import vm_mark

FOREIGN_CHECKPOINT = "<domaincheckpoint><name>other-tool</name><disks><disk name='vda'/></disks></domaincheckpoint>"
# No name of ours, however it begins.
FOREIGN_FILES = ("somebody.scratch", "understudy-notes.txt", "my-understudy-0-1.delta")
PAUSES = {"UNDERSTUDY_COMMIT_PAUSES": "0.1,0.2,0.3,0.4"}


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Bench]:
    """A VM with a job in each mode, what a deleted job left, and things of other programs."""
    with bench(lab, "swept", points=3) as made:
        installation = made.installation
        installation.job("external", made.vm.name, options=("--suffix", "_x", "--snapshot-mode", "external"))
        installation.job("gone", made.vm.name, options=("--suffix", "_g"))
        for job in ("nightly", "external", "gone"):
            installation.replicate(job)
        installation.ok("job", "delete", "gone")
        installation.ok("replica", "remove", f"{made.vm.name}_g", "--delete-files")
        with made.vm.domain() as domain:
            domain.checkpointCreateXML(FOREIGN_CHECKPOINT, 0)
        for directory in (installation.scratch, made.vm.disks[0].path.parent):
            for name in (*FOREIGN_FILES, unknown_job_file(made)):
                (directory / name).write_text("keep me")
        yield made


def unknown_job_file(scene: Bench) -> str:
    with scene.vm.domain() as domain:
        return f"understudy-ffffffffffff-{vm_mark(domain.UUIDString())}-3-vda.scratch"


def checkpoints(scene: Bench) -> set[str]:
    with scene.vm.domain() as domain:
        return {item.getName() for item in domain.listAllCheckpoints()}


def found(scene: Bench, *options: str) -> list[dict[str, Any]]:
    documents = scene.installation.json("sweep", *options)
    assert isinstance(documents, list)
    return documents


def of_dead_sessions(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in documents if item["action"] not in ("keep", "skip", "not_ours")]


def kill(scene: Bench, job: str, point: str) -> None:
    scene.write()
    assert scene.run_broken(job, f"{point}=kill").status == -signal.SIGKILL
    scene.wait_processes_gone()


def assert_foreign_things_are_untouched(scene: Bench) -> None:
    assert "other-tool" in checkpoints(scene)
    for directory in (scene.installation.scratch, scene.vm.disks[0].path.parent):
        for name in (*FOREIGN_FILES, unknown_job_file(scene)):
            assert (directory / name).read_text() == "keep me"


def test_what_other_programs_and_unknown_jobs_have_is_told_with_commands_at_most(scene: Bench) -> None:
    documents = found(scene)
    (copies,) = of_dead_sessions(documents)
    assert (copies["kind"], copies["why"], copies["done"]) == ("digest_copy", "no such replica", True)
    assert found(scene) == [item for item in documents if item["action"] == "not_ours"]
    (checkpoint,) = [item for item in documents if item["kind"] == "checkpoint"]
    assert checkpoint["why"].startswith("job unknown")
    uri = scene.installation.lab.alpha.uri
    assert checkpoint["commands"] == [f"virsh -c '{uri}' checkpoint-delete {scene.vm.name} {checkpoint['name']}"]
    files = [item for item in documents if item["kind"] == "file"]
    assert {item["name"] for item in files} == {unknown_job_file(scene)}
    assert len(documents) == len(files) + 2 == 4
    assert_foreign_things_are_untouched(scene)


def test_a_dry_run_lists_what_a_killed_session_left_and_the_sweep_removes_exactly_that(scene: Bench) -> None:
    before = checkpoints(scene)
    kill(scene, "nightly", "read.middle")
    (new,) = checkpoints(scene) - before
    stray = scene.place(scene.replica) / "layers" / "vda-20200101-000000-0000.qcow2.partial"
    stray.write_text("cut off")
    listed = of_dead_sessions(found(scene, "--dry-run"))
    kinds = [item["kind"] for item in listed]
    assert kinds.count("backup_job") == kinds.count("checkpoint") == 1
    assert [item["name"] for item in listed if item["kind"] == "checkpoint"] == [new]
    assert {Path(item["name"]).suffix for item in listed if item["kind"] == "file"} == {".sock", ".scratch"}
    assert str(stray) in [item["name"] for item in listed if item["kind"] == "replica_file"]
    assert checkpoints(scene) == before | {new}
    assert stray.exists()
    swept = of_dead_sessions(found(scene))
    assert [item["name"] for item in swept] == [item["name"] for item in listed]
    assert all(item["done"] for item in swept), swept
    assert checkpoints(scene) == before
    assert not stray.exists()
    assert_foreign_things_are_untouched(scene)
    assert of_dead_sessions(found(scene)) == []
    scene.write()
    assert scene.installation.replicate("nightly")["tasks"][0]["disks"][0]["mode"] == "incremental"
    scene.check_points()


def test_a_controller_that_starts_sweeps_what_sessions_of_the_dead_one_left(scene: Bench) -> None:
    kill(scene, "nightly", "snapshot.after")
    assert [item["kind"] for item in of_dead_sessions(found(scene, "--dry-run"))].count("backup_job") == 1
    scene.installation.ok("controller")
    assert of_dead_sessions(found(scene, "--dry-run")) == []
    assert_foreign_things_are_untouched(scene)


def test_a_delta_of_a_killed_session_is_merged_and_tracking_is_not_trusted_once(scene: Bench) -> None:
    kill(scene, "external", "read.middle")
    listed = of_dead_sessions(found(scene, "--dry-run"))
    assert [item["kind"] for item in listed].count("snapshot_delta") == 1
    swept = of_dead_sessions(found(scene))
    assert [item["name"] for item in swept] == [item["name"] for item in listed]
    assert all(item["done"] for item in swept), swept
    assert not list(scene.vm.disks[0].path.parent.glob("understudy-*.delta"))
    with scene.vm.domain() as domain:
        assert left_on_domain(domain, scene.vm) == ["bitmap other-tool"]
    assert_foreign_things_are_untouched(scene)
    (disk,) = scene.installation.replicate("external")["tasks"][0]["disks"]
    assert (disk["mode"], disk["reason"]) == ("digest_scan", "checkpoint_missing")
    (disk,) = scene.installation.replicate("external")["tasks"][0]["disks"]
    assert disk["mode"] == "incremental"


def test_a_sweep_is_refused_while_a_session_runs_and_a_dry_run_is_not(scene: Bench) -> None:
    scene.write()
    with scene.installation.stalled("nightly", "read.before") as running:
        refused = scene.installation.run("sweep")
        assert refused.status == 2
        assert f"a controller is running (process {running.process.pid})" in refused.err
        documents = found(scene, "--dry-run")
        assert of_dead_sessions(documents) == []
        skipped = [item for item in documents if item["action"] == "skip"]
        assert {item["kind"] for item in skipped} >= {"backup_job", "checkpoint", "file"}
    assert running.ended.status == 0


def test_a_delta_that_cannot_be_merged_is_tried_again_and_told_with_commands_that_work(
    scene: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PAUSES.items():
        monkeypatch.setenv(name, value)
    scene.write()
    copy = scene.vm.disks[0].path.parent / "foreign-copy.qcow2"
    with scene.installation.stalled("external", "read.before") as running, scene.vm.domain() as domain:
        target = f"<disk type='file'><source file='{copy}'/><driver type='qcow2'/></disk>"
        domain.blockCopy("vda", target, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    assert running.ended.status == 0
    (task,) = running.ended.json["tasks"]
    assert task["state"] == "warning"
    assert scene.point_ids(f"{scene.vm.name}_x")[-1] == task["restore_point"]
    (told,) = [warning for warning in task["warnings"] if "blockcommit" in warning]
    assert "another program runs a block job on it (copy)" in told
    (command,) = re.findall(r"`(virsh [^`]+)`", told)
    (delta,) = re.findall(r"only then delete (\S+)", told)
    next_run = scene.installation.run("--json", "job", "run", "external")
    assert next_run.status == 1
    assert command in next_run.json["tasks"][0]["error"]
    again = scene.installation.run("--json", "sweep")
    assert again.status == 1
    assert command in again.err
    (item,) = [item for item in again.json if item["problem"]]
    assert (item["name"], item["commands"]) == (delta, [command, f"rm -- {delta}"])
    with scene.vm.domain() as domain:
        assert domain.blockJobInfo("vda", 0)["type"] == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY
        domain.blockJobAbort("vda", 0)
    copy.unlink()
    for line in item["commands"]:
        subprocess.run(line, shell=True, check=True)
    assert not Path(delta).exists()
    assert of_dead_sessions(found(scene)) == []
    scene.installation.replicate("external")
    scene.check_points(f"{scene.vm.name}_x")


def test_a_delta_of_a_vm_that_is_off_stays_and_the_next_sweep_with_the_vm_on_merges_it(scene: Bench) -> None:
    kill(scene, "external", "read.middle")
    scene.vm.run("echo kept > /data/kept; sync")
    scene.vm.destroy()
    kept = [item for item in found(scene) if item["kind"] == "snapshot_delta"]
    assert [item["action"] for item in kept] == ["keep"]
    assert "start it, then sweep again" in kept[0]["why"]
    assert Path(kept[0]["name"]).exists()
    scene.vm.start()
    scene.vm.wait_agent()
    assert scene.vm.run("cat /data/kept") == "kept\n"
    assert [item["name"] for item in found(scene) if item["kind"] == "snapshot_delta"] == [kept[0]["name"]]
    assert not Path(kept[0]["name"]).exists()
    assert scene.vm.run("cat /data/kept") == "kept\n"
    (disk,) = scene.installation.replicate("external")["tasks"][0]["disks"]
    assert disk["mode"] == "digest_scan"
    assert_foreign_things_are_untouched(scene)
    scene.check_points(f"{scene.vm.name}_x")
