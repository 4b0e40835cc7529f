"""Every point shows every byte of its instant, whatever the guest wrote, trimmed or zeroed before and after."""

from __future__ import annotations

import json

from tests.system.installation import Installation
from tests.system.steps import (
    INCREMENTAL,
    MIB,
    QUIET,
    assert_points_are,
    replica_directory,
    replicate_instant,
    replicate_paused,
)
from understudy.lab import agent
from understudy.lab.disks import DataDisk
from understudy.lab.writer import GuestWriter, verify_files


class _ReplicaShell:
    """A replica that runs on beta, as a shell."""

    def __init__(self, installation: Installation, name: str) -> None:
        self._beta = installation.lab.beta
        self._name = name

    def run(self, command: str, timeout_s: float = 60) -> str:
        with self._beta.connection() as connection:
            return agent.run_in_guest(connection, self._name, command, timeout_s)


def test_each_of_six_points_is_its_instant_of_a_guest_that_never_stops_writing(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "busy", data_disks=[DataDisk(64 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    with GuestWriter.on_device(vm, "/dev/vdb", pause_ms=5) as blocks, GuestWriter.in_files(vm, pause_ms=5) as files:
        instants = [replicate_instant(installation, vm, "nightly")]
        for _ in range(5):
            rounds = blocks.rounds(), files.rounds()
            while blocks.rounds() < rounds[0] + 20 or files.rounds() < rounds[1] + 4:
                pass
            instants.append(replicate_instant(installation, vm, "nightly"))
    assert instants[0].how() == {"vda": ("full", "first_run"), "vdb": ("full", "first_run")}
    for instant in instants[1:]:
        assert instant.how() == {"vda": INCREMENTAL, "vdb": INCREMENTAL}
        assert instant.task["warnings"] == []
        assert all(0 < disk["sent_bytes"] < disk["size"] // 2 for disk in instant.task["disks"])
    assert_points_are(installation, "busy_replica", *instants)
    installation.ok("failover", "start", "busy_replica")
    with lab.beta.connection() as beta:
        agent.wait_agent(beta, "busy_replica")
    assert verify_files(_ReplicaShell(installation, "busy_replica")) > 0


def test_what_was_trimmed_or_zeroed_leaves_no_stale_byte_in_the_next_point(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "trimmed", data_disks=[DataDisk(48 * MIB), DataDisk(48 * MIB, format="raw")])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    # Trimmed and zeroed: whole megabytes (the block size), 64 KiB parts of blocks, and pieces smaller than a part.
    holes = """
        blkdiscard -o $((4 * 1048576)) -l $((4 * 1048576)) $device
        blkdiscard -o $((10 * 1048576 + 65536)) -l 131072 $device
        blkdiscard -o $((12 * 1048576 + 4096)) -l 8192 $device
        dd if=/dev/zero of=$device bs=1M seek=16 count=4 oflag=direct conv=notrunc
        dd if=/dev/zero of=$device bs=64k seek=353 count=3 oflag=direct conv=notrunc
        dd if=/dev/zero of=$device bs=4k seek=6401 count=2 oflag=direct conv=notrunc
        blkdiscard -o $((28 * 1048576)) -l $((2 * 1048576 + 4096)) $device
    """
    on_both = "set -e; for device in /dev/vdb /dev/vdc; do {}\ndone; sync"
    vm.run(on_both.format("dd if=/dev/urandom of=$device bs=1M count=40 oflag=direct")
           + "; dd if=/dev/urandom of=/data/old bs=1M count=12; sync")
    instants = [replicate_paused(installation, vm, "nightly")]
    vm.run(on_both.format(holes)
           + "; rm /data/old; sync; fstrim /data; dd if=/dev/zero of=/data/new bs=1M count=6; sync")
    instants.append(replicate_instant(installation, vm, "nightly", meanwhile=on_both.format(
        "dd if=/dev/urandom of=$device bs=1M seek=4 count=2 oflag=direct conv=notrunc")))
    vm.run("blkdiscard /dev/vdb; blkdiscard /dev/vdc; rm /data/new; sync; fstrim /data")
    instants.append(replicate_paused(installation, vm, "nightly"))
    for instant in instants[1:]:
        assert instant.how() == {
            "vda": INCREMENTAL, "vdb": INCREMENTAL, "vdc": ("digest_scan", "tracking_unsupported"),
        }
    assert [instants[2].disk(name)["sent_bytes"] for name in ("vdb", "vdc")] == [0, 0]
    assert_points_are(installation, "trimmed_replica", *instants)


def test_no_more_points_than_wanted_are_kept_and_these_are_their_instants(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "kept", data_disks=[DataDisk(32 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=("--points", "3", *QUIET))
    instants, directory = [], installation.store
    for round_ in range(8):
        # Each run writes some places for the first time, some again, and zeros what an earlier one wrote.
        vm.run(f"dd if=/dev/urandom of=/dev/vdb bs=64k count=24 seek={round_ * 16} oflag=direct conv=notrunc;"
               f"dd if=/dev/urandom of=/dev/vdb bs=64k count=4 seek=400 oflag=direct conv=notrunc;"
               f"blkdiscard -o {max(0, round_ - 2) * MIB} -l {MIB // 2} /dev/vdb; echo {round_} >/data/round; sync")
        instants.append(replicate_paused(installation, vm, "nightly"))
        directory = replica_directory(installation, "kept_replica") if round_ == 0 else directory
        record = json.loads((directory / "replica.json").read_text())["replica"]
        assert [point["id"] for point in record["points"]] == [instant.point for instant in instants[-3:]]
    assert_points_are(installation, "kept_replica", *instants[-3:])
    installation.ok("replica", "verify", "kept_replica", "--point", instants[-3].point)
    disks = [disk for point in installation.points("kept_replica") for disk in point["disks"]]
    assert {str(path) for path in (directory / "layers").iterdir()} == {disk["image"] for disk in disks}
    assert {str(path) for path in (directory / "digests").iterdir()} == {disk["digest"] for disk in disks}
    assert {path.name for path in (directory / "points").iterdir()} == {
        f"{i.point}.{kind}" for i in instants[-3:] for kind in ("xml", "json", "excluded")
    }
