"""Disks of all shapes, disks that come, go and grow, powered-off VMs, both snapshot modes, and two proxies."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import libvirt
import pytest

from tests.system.installation import Installation
from tests.system.steps import (
    INCREMENTAL,
    MIB,
    QUIET,
    Instant,
    assert_point_is,
    assert_points_are,
    checkpoints,
    disk_paths,
    our_checkpoints,
    replicate_instant,
    replicate_off,
    replicate_paused,
)
from understudy.lab.disks import DataDisk
from understudy.lab.domain_xml import VmDisk
from understudy.lab.vm import LabVm
from understudy.lab.writer import GuestWriter

LIVE_AND_KEPT = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG

# One number after the other on two disks: at any one instant they are equal, or the first is one ahead.
_PAIRS = """
n=0
while [ ! -e /run/stop ]; do
    n=$((n + 1))
    printf '%512d' $n | dd of=/dev/vdb bs=512 count=1 oflag=direct conv=notrunc || exit 1
    printf '%512d' $n | dd of=/dev/vdc bs=512 count=1 oflag=direct conv=notrunc || exit 1
done
"""


def _noise(device: str, seek_mib: int, parts: int = 8) -> str:
    return f"dd if=/dev/urandom of={device} bs=64k count={parts} seek={seek_mib * 16} oflag=direct conv=notrunc"


def _make_image(path: Path, size: int, *options: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", *options, str(path), str(size)], check=True)
    path.chmod(0o666)


def _disk_xml(disk: VmDisk) -> str:
    return (f"<disk type='file' device='disk'><driver name='qemu' type='{disk.format}' discard='unmap'/>"
            f"<source file='{disk.path}'/><target dev='{disk.target}' bus='virtio'/></disk>")


def _with_disks(vm: LabVm, disks: Sequence[VmDisk]) -> LabVm:
    return LabVm(vm.host, vm.name, disks, vm.mac)


@pytest.mark.parametrize("mode", ["backup", "external"])
def test_a_snapshot_mode_keeps_one_instant_of_all_disks_and_leaves_the_vm_as_it_was(
    installation: Installation, mode: str
) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, f"held {mode}", data_disks=[*2 * [DataDisk(16 * MIB)], DataDisk(512 * MIB)])
    vm.wait_agent()
    paths = disk_paths(vm)
    installation.job("nightly", vm.name, options=("--snapshot-mode", mode, *QUIET))
    instants = []
    for round_ in range(3):
        vm.run(f"{_noise('/dev/vdb', 1 + round_)}; {_noise('/dev/vdc', 9 - round_)}; echo {round_} >/data/round; sync")
        instants.append(replicate_instant(installation, vm, "nightly", meanwhile=f"{_noise('/dev/vdb', 1 + round_, 40)}"
                                          f"; dd if=/dev/urandom of=/data/noise bs=64k count=20; sync"))
        assert disk_paths(vm) == paths
        assert len(checkpoints(vm)) == len(our_checkpoints(vm)) == 1
        with vm.domain() as domain:
            assert [domain.blockJobInfo(disk, 0) for disk in paths] == 4 * [{}]
            assert domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE
        assert {str(path) for path in Path(paths["vda"]).parent.iterdir()} == set(paths.values())
        assert list(installation.scratch.iterdir()) == []
    assert [set(instant.how().values()) for instant in instants[1:]] == [{INCREMENTAL}, {INCREMENTAL}]
    assert_points_are(installation, f"{vm.name}_replica", *instants)
    vm.run(f"setsid sh -c {shlex.quote(_PAIRS)} </dev/null >/run/pairs.log 2>&1 &")
    with GuestWriter.on_device(vm, "/dev/vdd", pause_ms=0):
        for _ in range(2):
            installation.replicate("nightly")  # nothing stands still here
            _, first, second, _ = installation.points(f"{vm.name}_replica")[-1]["disks"]
            assert 0 < _number(second["image"]) <= _number(first["image"]) <= _number(second["image"]) + 1
        # What a run missed around its snapshot would be missing for good: on this large disk hardly any place is
        # written again.
        last = replicate_instant(installation, vm, "nightly")
    assert set(last.how().values()) == {INCREMENTAL}
    assert_point_is(installation.points(f"{vm.name}_replica")[-1], last.copies)


def _number(image: str) -> int:
    """The number in the first sector of a layer."""
    said = subprocess.run(["qemu-io", "-r", "-U", "-f", "qcow2", "-c", "read -v 0 512", image], capture_output=True,
                          text=True, check=True).stdout
    sector = bytes.fromhex("".join(line.split(":")[1][:49] for line in said.splitlines()[:32]))
    return int(sector)


def test_a_grown_disk_is_scanned_once_and_older_points_keep_their_size(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "grown", data_disks=[DataDisk(32 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=("--points", "3", *QUIET))
    vm.run(_noise("/dev/vdb", 1, 200))
    instants = [replicate_paused(installation, vm, "nightly")]
    with vm.domain() as domain:
        # Not a multiple of the block size, nor of 64 KiB.
        domain.blockResize("vdb", 48 * MIB + 67 * 512, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    vm.run(f"{_noise('/dev/vdb', 2)}; {_noise('/dev/vdb', 40)}; "
           "dd if=/dev/urandom of=/dev/vdb bs=512 seek=98360 count=11 oflag=direct conv=notrunc")
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert instants[1].how() == {"vda": INCREMENTAL, "vdb": ("digest_scan", "disk_resized")}
    assert instants[1].disk("vdb")["sent_bytes"] <= 3 * MIB
    vm.run(f"{_noise('/dev/vdb', 44)}; blkdiscard -o {40 * MIB} -l {MIB} /dev/vdb")
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert instants[2].how() == {"vda": INCREMENTAL, "vdb": INCREMENTAL}
    assert_points_are(installation, "grown_replica", *instants)
    for offset in (45, 3):  # the second retirement merges the larger layer into the smaller one
        vm.run(_noise("/dev/vdb", offset))
        instants.append(replicate_paused(installation, vm, "nightly"))
    assert_points_are(installation, "grown_replica", *instants[-3:])


def test_disks_that_are_added_removed_excluded_or_shrunk(installation: Installation) -> None:
    lab = installation.lab
    vm = LabVm.create(lab.alpha, "changing", lab.guest, data_disks=[DataDisk(16 * MIB, format="raw")])
    installation.job("nightly", vm.name, options=QUIET)
    installation.job("system", vm.name, options=("--exclude-disk", "changing:vdb", "--suffix", "_system", *QUIET))
    instants = [replicate_off(installation, vm, "nightly")]
    slim = replicate_off(installation, vm, "system")
    (point,) = installation.points("changing_system")
    assert_point_is(point, {"vda": slim.copies["vda"]})
    vm.start()
    vm.wait_agent()
    instants.append(replicate_paused(installation, vm, "nightly"))
    extra = VmDisk("vdc", vm.disks[0].path.parent / "vdc.qcow2", "qcow2")
    _make_image(extra.path, 16 * MIB, "-f", "qcow2")
    with vm.domain() as domain:
        domain.attachDeviceFlags(_disk_xml(extra), LIVE_AND_KEPT)
    vm.run(f"{_noise('/dev/vdc', 3)}; echo added >/data/added; sync")
    larger = _with_disks(vm, (*vm.disks, extra))
    instants.append(replicate_instant(installation, larger, "nightly"))
    assert instants[-1].how() == {
        "vda": INCREMENTAL, "vdb": ("digest_scan", "tracking_unsupported"), "vdc": ("full", "new_disk"),
    }
    vm.run(_noise("/dev/vdc", 5))
    instants.append(replicate_paused(installation, larger, "nightly"))
    assert instants[-1].how()["vdc"] == INCREMENTAL
    with vm.domain() as domain:
        domain.detachDeviceFlags(_disk_xml(extra), LIVE_AND_KEPT)
    instants.append(replicate_paused(installation, vm, "nightly"))
    assert instants[-1].how()["vda"] == INCREMENTAL
    assert [text for text in instants[-1].task["warnings"] if "disk vdc is no longer part of VM 'changing'" in text]
    vm.shutdown()
    with vm.disks[1].path.open("r+b") as image:
        image.truncate(8 * MIB)
    refused = installation.run("--json", "job", "run", "nightly")
    assert refused.status == 1
    error = refused.json["tasks"][0]["error"]
    assert "disk vdb of VM 'changing': it shrank from 16777216 to 8388608 bytes; give it its old size" in error
    assert_points_are(installation, "changing_replica", *instants)


def test_disks_without_tracking_are_scanned_and_only_what_changed_is_sent(installation: Installation) -> None:
    lab = installation.lab
    vm = LabVm.create(lab.alpha, "mixed", lab.guest,
                      data_disks=[DataDisk(32 * MIB, format="raw"), DataDisk(32 * MIB), DataDisk(32 * MIB)])
    _make_image(vm.disks[2].path, 32 * MIB, "-f", "qcow2", "-o", "compat=0.10")
    vm.start()
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    devices = ("/dev/vdb", "/dev/vdc", "/dev/vdd")
    vm.run("; ".join(_noise(device, 1, 400) for device in devices))
    instants = [replicate_paused(installation, vm, "nightly")]
    for place in (3, 20):
        vm.run("; ".join(_noise(device, place, 4) for device in devices))
        instants.append(replicate_instant(installation, vm, "nightly"))
        assert instants[-1].how() == {
            "vda": INCREMENTAL, "vdd": INCREMENTAL,
            "vdb": ("digest_scan", "tracking_unsupported"), "vdc": ("digest_scan", "tracking_unsupported"),
        }
        for disk in ("vdb", "vdc"):
            assert instants[-1].disk(disk)["read_bytes"] >= 25 * MIB
            assert instants[-1].disk(disk)["sent_bytes"] <= MIB
    assert_points_are(installation, "mixed_replica", *instants)


def test_a_vm_that_is_off_and_on_and_off_is_followed_by_the_bitmap_in_its_image(installation: Installation) -> None:
    lab = installation.lab
    vm = LabVm.create(lab.alpha, "sleeper", lab.guest, data_disks=[DataDisk(16 * MIB)])
    installation.job("nightly", vm.name, options=QUIET)
    instants = [replicate_off(installation, vm, "nightly")]
    vm.start()
    vm.wait_agent()
    vm.run(f"{_noise('/dev/vdb', 1, 100)}; sync")
    instants.append(replicate_paused(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {("digest_scan", "no_baseline")}
    vm.run(f"{_noise('/dev/vdb', 2)}; blkdiscard -o {3 * MIB} -l {MIB} /dev/vdb; echo one >/data/one; sync")
    vm.shutdown()
    instants.append(replicate_off(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {INCREMENTAL}
    assert instants[-1].task["consistency"] == "filesystem"
    assert instants[-1].disk("vdb")["sent_bytes"] <= MIB
    instants.append(replicate_off(installation, vm, "nightly"))  # nothing changed
    assert set(instants[-1].how().values()) == {INCREMENTAL}
    assert [disk["sent_bytes"] for disk in instants[-1].task["disks"]] == [0, 0]
    vm.start()
    vm.wait_agent()
    vm.run(f"{_noise('/dev/vdb', 5)}; sync")
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {INCREMENTAL}
    assert len(checkpoints(vm)) == 1
    vm.run(f"{_noise('/dev/vdb', 6)}; sync")
    vm.destroy()
    instants.append(replicate_off(installation, vm, "nightly"))
    assert instants[-1].task["consistency"] == "crash"
    assert_points_are(installation, "sleeper_replica", *instants)


def test_two_proxies_of_one_machine_send_the_same_content_and_compress_nothing(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "sent", data_disks=[DataDisk(16 * MIB)])
    vm.wait_agent()
    installation.ok("proxy", "add", "far", "--host", "beta")
    codecs = ("none", "lz4", "zstd", "zstd-high")
    for codec in codecs:
        installation.job(codec, vm.name, options=("--compression", codec, "--suffix", f"_{codec}", *QUIET))
    installation.job("near", vm.name, options=("--target-proxy", "local", "--suffix", "_near", *QUIET))
    vm.run(f"{_noise('/dev/vdb', 1, 50)}; yes compressible | dd of=/dev/vdb bs=64k seek=128 count=64; sync")
    first = _all_jobs(installation, vm, codecs)
    vm.run(f"{_noise('/dev/vdb', 2)}; yes again | dd of=/dev/vdb bs=64k seek=150 count=20; rm -f /data/x;"
           f"blkdiscard -o {3 * MIB} -l {MIB // 2} /dev/vdb; echo x >/data/y; sync")
    second = _all_jobs(installation, vm, codecs)
    for codec in (*codecs, "near"):
        assert set(second[codec].how().values()) == {INCREMENTAL}
        for point, run in zip(installation.points(f"sent_{codec}"), (first[codec], second[codec]), strict=True):
            assert_point_is(point, run.copies)
    installation.ok("replica", "verify", "sent_zstd")
    for runs in (first, second):
        wires = [sum(disk["wire_bytes"] for disk in runs[codec].task["disks"]) for codec in codecs]
        assert len(set(wires)) == 1
        assert wires[0] > 0
        sent = {codec: [disk["sent_bytes"] for disk in run.task["disks"]] for codec, run in runs.items()}
        assert all(sent[codec] == sent["near"] for codec in codecs)
        assert [disk["wire_bytes"] for disk in runs["near"].task["disks"]] == [0, 0]
    _other_proxies_go_on(installation, vm)


def _other_proxies_go_on(installation: Installation, vm: LabVm) -> None:
    """A job whose proxies are replaced has what the old ones knew from its target."""
    installation.ok("proxy", "add", "spare")
    vm.run("echo z >/data/z; sync")
    installation.ok("job", "set", "near", "--source-proxy", "spare", "--target-proxy", "spare")
    third = replicate_paused(installation, vm, "near")
    assert set(third.how().values()) == {INCREMENTAL}
    assert [disk["wire_bytes"] for disk in third.task["disks"]] == [0, 0]
    assert_point_is(installation.points("sent_near")[-1], third.copies)


def _all_jobs(installation: Installation, vm: LabVm, codecs: Sequence[str]) -> dict[str, Instant]:
    """Each job's run at one and the same instant."""
    with vm.domain() as domain:
        domain.suspend()
        shared = replicate_off(installation, vm, "near")
        runs = {codec: Instant(installation.replicate(codec), shared.copies) for codec in codecs}
        domain.resume()
    return {**runs, "near": shared}
