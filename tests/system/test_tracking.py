"""Tracking and digests that are lost or damaged cost a scan or a look elsewhere, never a wrong byte nor a full copy."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.system.installation import Installation, frozen_copy
from tests.system.steps import (
    INCREMENTAL,
    MIB,
    QUIET,
    Instant,
    assert_points_are,
    checkpoints,
    our_checkpoints,
    replica_directory,
    replicate_instant,
    replicate_paused,
)
from understudy.lab.disks import DataDisk
from understudy.lab.vm import LabVm
from understudy.model.extent import PART

_FOREIGN = "<domaincheckpoint><name>{}</name></domaincheckpoint>"


def _write(vm: LabVm, place: int) -> None:
    vm.run(f"dd if=/dev/urandom of=/dev/vdb bs=64k count=3 seek={place * 16} oflag=direct conv=notrunc;"
           f"echo {place} >/data/place; sync")


def _forget(vm: LabVm) -> None:
    """Lose all tracking that is ours."""
    with vm.domain() as domain:
        for name in our_checkpoints(vm):
            domain.checkpointLookupByName(name).delete()


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    path.write_bytes(content)


def _source_digests(installation: Installation) -> list[Path]:
    """The digest files that the source side keeps."""
    return sorted((installation.home / "proxies").glob("*/digests/*/*.digest"))


def test_a_killed_qemu_or_a_lost_checkpoint_costs_one_digest_scan(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "crashed", data_disks=[DataDisk(32 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=24 oflag=direct")
    instants = [replicate_paused(installation, vm, "nightly")]
    _write(vm, 1)
    vm.process().signal(signal.SIGKILL)
    vm.wait_off()
    vm.start()
    vm.wait_agent()
    _write(vm, 2)
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert {mode for mode, _ in instants[-1].how().values()} == {"digest_scan"}
    assert {reason for _, reason in instants[-1].how().values()} <= {"bitmap_inconsistent", "checkpoint_missing"}
    assert instants[-1].disk("vdb")["sent_bytes"] == 6 * PART
    _write(vm, 3)
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {INCREMENTAL}
    (ours,) = checkpoints(vm)
    with vm.domain() as domain:
        domain.checkpointLookupByName(ours).delete()
    _write(vm, 4)
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {("digest_scan", "checkpoint_missing")}
    assert instants[-1].disk("vdb")["sent_bytes"] == 3 * PART
    _write(vm, 5)
    instants.append(replicate_instant(installation, vm, "nightly", "--full-scan"))
    assert set(instants[-1].how().values()) == {("digest_scan", "forced")}
    assert instants[-1].disk("vdb")["sent_bytes"] == 3 * PART
    _write(vm, 6)
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {INCREMENTAL}
    assert_points_are(installation, "crashed_replica", *instants)


def test_total_loss_of_tracking_costs_a_scan_that_sends_what_differs_and_no_more(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "forgotten", data_disks=[DataDisk(64 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=64 oflag=direct")
    instants = [replicate_paused(installation, vm, "nightly")]
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=64k count=1 seek=333 oflag=direct conv=notrunc")
    _forget(vm)
    instants.append(replicate_paused(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {("digest_scan", "checkpoint_missing")}
    assert instants[-1].disk("vdb")["sent_bytes"] == PART
    # Now nothing changes in between.
    with vm.domain() as domain:
        domain.suspend()
        copies = frozen_copy(vm, installation.place)
        instants.append(Instant(installation.replicate("nightly"), copies))
        _forget(vm)
        instants.append(Instant(installation.replicate("nightly"), copies))
        domain.resume()
    assert set(instants[-1].how().values()) == {("digest_scan", "checkpoint_missing")}
    for disk in instants[-1].task["disks"]:
        assert disk["sent_bytes"] == 0
        assert disk["wire_bytes"] < copies[disk["name"]].stat().st_size / 1000
    assert_points_are(installation, "forgotten_replica", *instants)


def test_checkpoints_of_others_stay_and_two_jobs_follow_one_vm_by_their_own(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "shared", data_disks=[DataDisk(32 * MIB)])
    vm.wait_agent()
    other = installation.place / "other"
    other.mkdir()
    installation.ok("datastore", "add", "other", "--host", "beta", "--path", str(other))
    installation.job("first", vm.name, options=QUIET)
    installation.ok("job", "create", "second", "--source", "alpha", "--target", "beta", "--datastore", "other",
                    "--vm", vm.name, "--snapshot-mode", "external", "--suffix", "_second", *QUIET)
    with vm.domain() as domain:
        domain.checkpointCreateXML(_FOREIGN.format("foreign-before"), 0)
    instants: dict[str, list[Instant]] = {"first": [], "second": []}
    # Each job's baseline is older than some runs of the other one.
    for place, job in enumerate(("first", "second", "first", "second", "second", "first")):
        _write(vm, place)
        if place == 2:
            with vm.domain() as domain:
                domain.checkpointCreateXML(_FOREIGN.format("foreign-between"), 0)
        instants[job].append(replicate_instant(installation, vm, job, meanwhile="echo while >/data/while; sync"))
    for job, replica in (("first", "shared_replica"), ("second", "shared_second")):
        how = [set(instant.how().values()) for instant in instants[job]]
        assert how == [{("full", "first_run")}, {INCREMENTAL}, {INCREMENTAL}]
        assert_points_are(installation, replica, *instants[job])
    assert len(our_checkpoints(vm)) == 2
    assert set(checkpoints(vm)) - set(our_checkpoints(vm)) == {"foreign-before", "foreign-between"}


def test_damaged_digests_are_taken_from_the_other_side_or_recomputed(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "proved", data_disks=[DataDisk(16 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=12 oflag=direct")
    instants = [replicate_paused(installation, vm, "nightly")]

    def run_after(place: int) -> list[str]:
        _write(vm, place)
        instants.append(replicate_paused(installation, vm, "nightly"))
        assert set(instants[-1].how().values()) == {INCREMENTAL}
        assert instants[-1].disk("vdb")["sent_bytes"] <= MIB
        return list(instants[-1].task["warnings"])

    assert len(_source_digests(installation)) == 2
    for path in _source_digests(installation):
        path.unlink()
    assert run_after(1) == []
    for path in _source_digests(installation):
        _flip_a_bit(path)
    assert run_after(2) == []
    (newest,) = installation.points("proved_replica")[-1:]
    for disk in newest["disks"]:
        _flip_a_bit(Path(disk["digest"]))
    assert run_after(3) == []  # the source's copy is intact
    (newest,) = installation.points("proved_replica")[-1:]
    for path in (*_source_digests(installation), *(Path(disk["digest"]) for disk in newest["disks"])):
        _flip_a_bit(path)
    assert len([text for text in run_after(4) if "recomputed from the replica" in text]) == 2
    for disk in installation.points("proved_replica")[-1]["disks"]:
        Path(disk["digest"]).unlink()
    assert len(_source_digests(installation)) == 2
    for path in _source_digests(installation):
        path.unlink()
    assert len([text for text in run_after(5) if "recomputed from the replica" in text]) == 2
    assert_points_are(installation, "proved_replica", *instants)


def test_a_damaged_layer_is_told_and_the_disk_is_sent_again(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "mended", data_disks=[DataDisk(16 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    replicate_paused(installation, vm, "nightly")
    _write(vm, 1)
    replicate_paused(installation, vm, "nightly")
    layer = Path(installation.points("mended_replica")[0]["disks"][1]["image"])
    layer.rename(layer.with_suffix(".gone"))
    instant = replicate_paused(installation, vm, "nightly")
    assert instant.how() == {"vda": INCREMENTAL, "vdb": ("full", "replica_changed")}
    directory = replica_directory(installation, "mended_replica")
    (point,) = [item for item in installation.points("mended_replica") if item["id"] == instant.point]
    assert str(directory) in point["disks"][1]["image"]
    assert installation.run("replica", "verify", "mended_replica").status == 0
    assert installation.run("replica", "verify", "mended_replica", "--point",
                            installation.points("mended_replica")[0]["id"]).status == 1
