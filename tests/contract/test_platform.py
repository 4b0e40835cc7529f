"""The promises of :class:`understudy.platforms.Platform`, tried on real hosts of every platform that the lab has."""

from __future__ import annotations

import grp
import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import nbd
import pytest

from understudy.context import Context
from understudy.errors import GuestError, HostUnreachable, NotFound, Refused, TrackingLost, UsageError
from understudy.lab.disks import DataDisk
from understudy.lab.hosts import LabHost, qemu_user
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm
from understudy.model.access import HostAccess
from understudy.model.inventory import Vm, VmState
from understudy.model.job import SnapshotMode
from understudy.model.replica import Baseline
from understudy.model.snapshot import ImageDisk, ServedDisk, SnapshotRequest, SourceSnapshot, Tag
from understudy.model.transfer import Reason
from understudy.platforms import Platform, ReplicaVmSpec, open_platform
from understudy.units import MIB

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NAME = "wéb server 1"
JOB = "0123456789abcdef"
# A session that dies while it holds a snapshot.
HOLD = """
import json, sys, time
from understudy.context import Context
from understudy.model.access import HostAccess
from understudy.model.job import SnapshotMode
from understudy.model.snapshot import SnapshotRequest, Tag
from understudy.platforms import open_platform
uri, name, mode, job, scratch = sys.argv[1:]
host = open_platform(HostAccess(uri))
vm = host.describe_vm(name)
request = SnapshotRequest(Tag(job, vm.uuid, 7), ("vda", "vdb"), (), None, "", (), scratch)
with host.snapshot(Context(), vm, SnapshotMode(mode), request):
    print("held", flush=True)
    time.sleep(600)
"""
MODES = pytest.mark.parametrize("mode", [SnapshotMode.BACKUP, SnapshotMode.EXTERNAL, SnapshotMode.AUTO])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.open() as opened:
        yield opened


@pytest.fixture(scope="module")
def scratch(lab: Lab) -> Path:
    """A directory where the emulator may make sockets and scratch files."""
    path = lab.directory / "scratch"
    path.mkdir()
    os.chown(path, qemu_user().pw_uid, qemu_user().pw_gid)
    return path


@pytest.fixture(scope="module")
def guest(lab: Lab) -> LabVm:
    """A running VM: vda with a system, vdb tracked and empty, vdc raw, and drives with media."""
    vm = LabVm.create(lab.alpha, NAME, lab.guest, data_disks=[DataDisk(16 * MIB), DataDisk(8 * MIB, "raw")])
    media = lab.directory / "media"
    media.mkdir()
    for name in ("floppy.img", "cd.iso"):
        (media / name).write_bytes(bytes(1440 << 10))
    drives = (
        f"<disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='{media}/floppy.img'/>"
        "<target dev='fda' bus='fdc'/></disk>"
        f"<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{media}/cd.iso'/>"
        "<target dev='sda' bus='sata'/><readonly/></disk>"
    )
    with vm.host.connection() as connection:
        xml = connection.lookupByName(NAME).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        connection.defineXML(xml.replace("</devices>", f"{drives}</devices>"))
    vm.start()
    vm.wait_agent()
    return vm


@pytest.fixture
def source(lab: Lab) -> Iterator[Platform]:
    with opened(lab.alpha) as platform:
        yield platform


@pytest.fixture
def target(lab: Lab) -> Iterator[Platform]:
    with opened(lab.beta) as platform:
        yield platform


@contextmanager
def opened(host: LabHost) -> Iterator[Platform]:
    platform = open_platform(HostAccess(host.uri))
    try:
        yield platform
    finally:
        platform.close()


@pytest.fixture
def vm(guest: LabVm, source: Platform) -> Vm:
    return source.describe_vm(guest.name)


def request_of(vm: Vm, scratch: Path, session: int = 1, job: str = JOB, checkpoint: bool = False) -> SnapshotRequest:
    tag = Tag(job, vm.uuid, session)
    tracked = ("vda", "vdb") if checkpoint else ()
    name = f"{tag}-cp" if checkpoint else ""
    return SnapshotRequest(tag, ("vda", "vdb", "vdc"), (), None, name, tracked, str(scratch))


def write(guest: LabVm, text: str, disk: str = "vdb") -> None:
    guest.run(f"printf %s {text} | dd of=/dev/{disk} bs=4096 conv=sync,notrunc 2>/dev/null; sync")


def shown(snapshot: SourceSnapshot, name: str, length: int) -> bytes:
    """The first bytes of a disk as a snapshot hands it out."""
    disk = next(item for item in snapshot.disks if item.name == name)
    if isinstance(disk, ServedDisk):
        return read_nbd(f"nbd+unix:///{disk.export}?socket={disk.socket}", length)
    assert isinstance(disk, ImageDisk)
    raw = Path(f"{disk.image}.shown")
    try:
        subprocess.run(["qemu-img", "convert", "-f", disk.image_format, "-O", "raw", disk.image, raw], check=True)
        return raw.read_bytes()[:length]
    finally:
        raw.unlink(missing_ok=True)


def read_nbd(uri: str, length: int) -> bytes:
    handle = nbd.NBD()
    handle.connect_uri(uri)
    try:
        return bytes(handle.pread(length, 0))
    finally:
        handle.shutdown()


def live_paths(guest: LabVm) -> dict[str, str]:
    """What each disk of the running VM writes to."""
    found = {}
    with guest.domain() as domain:
        for disk in ET.fromstring(domain.XMLDesc(0)).iterfind("devices/disk"):
            target, source = disk.find("target"), disk.find("source")
            if target is not None and source is not None:
                found[target.get("dev", "")] = source.get("file", "")
    return found


def backup_runs(guest: LabVm) -> bool:
    with guest.host.connection() as connection:
        try:
            connection.lookupByName(guest.name).backupGetXMLDesc()
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
                raise
            return False
        return True


def checkpoints(guest: LabVm) -> set[str]:
    with guest.domain() as domain:
        return {item.getName() for item in domain.listAllCheckpoints()}


@pytest.fixture
def _no_checkpoints(guest: LabVm) -> Iterator[None]:
    """No checkpoint before and after a test."""
    yield
    with guest.domain() as domain:
        for item in domain.listAllCheckpoints():
            item.delete()


# --- inventory --------------------------------------------------------------------------------------------------------


def test_a_host_says_what_it_is(source: Platform) -> None:
    facts = source.facts()
    assert facts.hostname
    assert facts.platform_version.count(".") == 2
    assert facts.hypervisor_version.count(".") == 2
    assert facts.cpus >= 1
    assert facts.memory_bytes > 256 * MIB
    assert facts.emulator_user == (qemu_user().pw_uid, grp.getgrnam(qemu_user().pw_name).gr_gid)


def test_a_vm_is_described_with_its_disks_and_not_its_media(source: Platform, guest: LabVm, vm: Vm) -> None:
    assert (vm.name, vm.state, vm.arch, vm.firmware, vm.vcpus) == (NAME, VmState.RUNNING, "x86_64", "bios", 1)
    assert vm.memory_bytes == 160 * MIB
    assert [(disk.name, disk.image_format, disk.tracked, disk.obstacle) for disk in vm.disks] == [
        ("vda", "qcow2", True, ""), ("vdb", "qcow2", True, ""), ("vdc", "raw", False, ""),
    ]  # fmt: skip
    assert [disk.path for disk in vm.disks] == [str(disk.path) for disk in guest.disks]
    assert [disk.size for disk in vm.disks[1:]] == [16 * MIB, 8 * MIB]
    assert (vm.has_agent_channel, vm.agent_connected) == (True, True)
    assert [nic.mac for nic in vm.nics] == [guest.mac]
    assert source.list_vms() == (vm,)


def test_an_unknown_vm_is_not_found(source: Platform) -> None:
    with pytest.raises(NotFound, match=r"VM 'nobody': host .* has no VM of that name; see 'understudy host vms'"):
        source.describe_vm("nobody")


def test_a_vm_whose_image_is_missing_hides_no_other_vm(lab: Lab, source: Platform, guest: LabVm) -> None:
    broken = LabVm.create(lab.alpha, "broken", lab.guest)
    try:
        broken.disks[0].path.unlink()
        told = {item.name: item for item in source.list_vms()}
        assert set(told) == {"broken", NAME}
        assert "its image cannot be read: " in told["broken"].disk("vda").obstacle
        assert told[NAME].disk("vda").obstacle == ""
    finally:
        broken.undefine()


def test_a_host_that_does_not_answer_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(HostUnreachable, match=r"check the URI, the network and that libvirt runs there") as caught:
        open_platform(HostAccess(f"qemu+unix:///system?socket={tmp_path}/nowhere"))
    assert caught.value.retryable


def test_an_unknown_scheme_is_a_wrong_value() -> None:
    with pytest.raises(UsageError, match="unknown scheme"):
        open_platform(HostAccess("ftp://host/system"))


def test_a_connection_that_was_lost_is_made_again(lab: Lab, guest: LabVm, source: Platform) -> None:
    assert source.describe_vm(guest.name).state is VmState.RUNNING
    lab.alpha.stop_libvirtd()
    try:
        with pytest.raises(HostUnreachable):
            source.describe_vm(guest.name)
    finally:
        lab.alpha.start_libvirtd()
    assert source.describe_vm(guest.name).state is VmState.RUNNING


# --- freeze -----------------------------------------------------------------------------------------------------------


def test_as_many_file_systems_are_thawed_as_were_frozen_and_then_none(
    guest: LabVm, source: Platform, vm: Vm
) -> None:
    guest.wait_agent()
    frozen = source.freeze(vm.uuid, 5)
    assert frozen >= 1
    assert source.thaw(vm.uuid, 5) == frozen
    assert source.thaw(vm.uuid, 5) == 0


def test_a_vm_that_is_gone_has_nothing_to_thaw_and_cannot_be_frozen(source: Platform) -> None:
    assert source.thaw(str(uuid.uuid4()), 5) == 0
    with pytest.raises(NotFound):
        source.freeze(str(uuid.uuid4()), 5)


def test_an_agent_that_does_not_answer_is_an_error_in_time(guest: LabVm, source: Platform, vm: Vm) -> None:
    guest.wait_agent()
    with guest.domain() as domain:
        domain.suspend()
        try:
            with pytest.raises(GuestError):
                source.freeze(vm.uuid, 1)
        finally:
            domain.resume()
    guest.wait_agent()
    source.thaw(vm.uuid, 5)


# --- snapshots --------------------------------------------------------------------------------------------------------


@MODES
def test_a_snapshot_shows_one_instant_of_every_disk_and_leaves_nothing(
    guest: LabVm, source: Platform, vm: Vm, scratch: Path, mode: SnapshotMode
) -> None:
    for disk in ("vdb", "vdc"):
        write(guest, f"before-{disk}", disk)
    before = live_paths(guest)
    with source.snapshot(Context(), vm, mode, request_of(vm, scratch)) as snapshot:
        for disk in ("vdb", "vdc"):
            write(guest, f"-after--{disk}", disk)
        assert [disk.name for disk in snapshot.disks] == ["vda", "vdb", "vdc"]
        for disk in ("vdb", "vdc"):
            assert shown(snapshot, disk, 10) == f"before-{disk}".encode()
        assert shown(snapshot, "vda", 512)[510:] == b"\x55\xaa"
        assert snapshot.baseline is None
        assert snapshot.taken_at.endswith("+00:00")
    assert live_paths(guest) == before
    assert not backup_runs(guest)
    assert checkpoints(guest) == set()
    for disk in ("vdb", "vdc"):
        assert guest.run(f"dd if=/dev/{disk} bs=11 count=1 iflag=fullblock 2>/dev/null") == f"-after--{disk}"
    # What it made in files is named by its tag; the caller removes it.
    left = [path for path in (*scratch.iterdir(), *guest.disks[0].path.parent.iterdir()) if "understudy-" in path.name]
    for path in left:
        assert path.name.startswith(f"{Tag(JOB, vm.uuid, 1)}")
        path.unlink()


@MODES
def test_a_snapshot_ends_as_well_when_the_reader_fails(
    guest: LabVm, source: Platform, vm: Vm, scratch: Path, mode: SnapshotMode
) -> None:
    before = live_paths(guest)
    with pytest.raises(ZeroDivisionError), source.snapshot(Context(), vm, mode, request_of(vm, scratch, 2)):
        raise ZeroDivisionError
    assert live_paths(guest) == before
    assert not backup_runs(guest)


@pytest.mark.usefixtures("_no_checkpoints")
@pytest.mark.parametrize("mode", [SnapshotMode.BACKUP, SnapshotMode.EXTERNAL])
def test_a_baseline_is_made_with_the_snapshot_and_tells_what_changed_since(
    guest: LabVm, source: Platform, vm: Vm, scratch: Path, mode: SnapshotMode
) -> None:
    first = request_of(vm, scratch, 10, checkpoint=True)
    with source.snapshot(Context(), vm, mode, first) as snapshot:
        baseline = snapshot.baseline
    assert baseline == Baseline(first.checkpoint, ("vda", "vdb"))
    assert checkpoints(guest) == {first.checkpoint}
    assert source.tracking(vm, baseline) == {
        "vda": Reason.NONE, "vdb": Reason.NONE, "vdc": Reason.TRACKING_UNSUPPORTED,
    }  # fmt: skip
    write(guest, "changed")
    second = replace(request_of(vm, scratch, 11), incremental=("vdb",), since=Baseline(first.checkpoint, ("vdb",)))
    with source.snapshot(Context(), vm, mode, second) as snapshot:
        disks = {disk.name: disk for disk in snapshot.disks}
        served, whole = disks["vdb"], disks["vda"]
        if isinstance(served, ServedDisk):
            assert isinstance(whole, ServedDisk)
            assert served.dirty_context.startswith("qemu:dirty-bitmap:")
            assert whole.dirty_context == ""
            assert dirty_bytes(served) == 65536
        else:
            assert isinstance(served, ImageDisk)
            assert isinstance(whole, ImageDisk)
            assert (served.bitmap, whole.bitmap) == (first.checkpoint, "")


def dirty_bytes(disk: ServedDisk) -> int:
    found = 0

    def collect(_context: str, _offset: int, entries: list[int], _error: object) -> int:
        nonlocal found
        found += sum(length for length, flags in zip(entries[::2], entries[1::2], strict=True) if flags)
        return 0

    handle = nbd.NBD()
    handle.add_meta_context(disk.dirty_context)
    handle.connect_uri(f"nbd+unix:///{disk.export}?socket={disk.socket}")
    handle.block_status(16 * MIB, 0, collect)
    handle.shutdown()
    return found


@pytest.mark.usefixtures("_no_checkpoints")
def test_why_a_disk_cannot_be_incremental_is_told_for_each_disk(
    source: Platform, vm: Vm, scratch: Path
) -> None:
    request = replace(request_of(vm, scratch, 20, checkpoint=True), tracked=("vda",))
    with source.snapshot(Context(), vm, SnapshotMode.BACKUP, request):
        pass
    assert source.tracking(vm, Baseline("gone", ("vda", "vdb"))) == dict.fromkeys(
        ("vda", "vdb", "vdc"), Reason.CHECKPOINT_MISSING
    )
    known = source.tracking(vm, Baseline(request.checkpoint, ("vda",)))
    assert (known["vda"], known["vdb"]) == (Reason.NONE, Reason.NO_BASELINE)
    # The record claims more than the bitmaps hold: what is not there is never trusted.
    known = source.tracking(vm, Baseline(request.checkpoint, ("vda", "vdb")))
    assert (known["vda"], known["vdb"]) == (Reason.NONE, Reason.BITMAP_INCONSISTENT)


def test_an_incremental_snapshot_since_nothing_is_lost_tracking_and_a_whole_one_still_works(
    guest: LabVm, source: Platform, vm: Vm, scratch: Path
) -> None:
    request = replace(request_of(vm, scratch, 30), incremental=("vdb",), since=Baseline("understudy-gone", ("vdb",)))
    with pytest.raises(TrackingLost) as caught:
        source.snapshot(Context(), vm, SnapshotMode.BACKUP, request).__enter__()
    assert caught.value.reason in set(Reason)
    assert not backup_runs(guest)
    with source.snapshot(Context(), vm, SnapshotMode.BACKUP, replace(request, incremental=())) as snapshot:
        assert snapshot.disks


@pytest.mark.usefixtures("_no_checkpoints")
def test_keeping_a_baseline_removes_our_others_and_the_former_and_no_foreign_one(
    guest: LabVm, source: Platform, vm: Vm, scratch: Path
) -> None:
    made = []
    for session, job in ((40, JOB), (41, JOB), (42, "f" * 32), (43, "e" * 32)):
        request = request_of(vm, scratch, session, job, checkpoint=True)
        with source.snapshot(Context(), vm, SnapshotMode.BACKUP, request):
            made.append(request.checkpoint)
    with guest.domain() as domain:
        domain.checkpointCreateXML("<domaincheckpoint><name>other-tool</name><disks><disk name='vda'/>"
                                   "<disk name='fda' checkpoint='no'/><disk name='vdc' checkpoint='no'/>"
                                   "</disks></domaincheckpoint>", 0)  # fmt: skip
    old, new, former, foreign = made
    assert source.keep_baseline(vm, Tag(JOB, vm.uuid, 50), new, former) == []
    assert checkpoints(guest) == {new, foreign, "other-tool"}
    assert source.tracking(vm, Baseline(new, ("vda", "vdb")))["vdb"] is Reason.NONE
    assert source.keep_baseline(vm, Tag(JOB, vm.uuid, 51), "", "") == []
    assert checkpoints(guest) == {foreign, "other-tool"}
    assert old not in checkpoints(guest)


@pytest.mark.usefixtures("_no_checkpoints")
def test_a_marker_that_was_made_at_another_time_than_recorded_is_not_trusted(
    source: Platform, vm: Vm, scratch: Path
) -> None:
    request = request_of(vm, scratch, 44, checkpoint=True)
    with source.snapshot(Context(), vm, SnapshotMode.BACKUP, request):
        pass
    (name, made_at), *others = source.markers(vm).items()
    assert (name, others) == (request.checkpoint, [])
    known = source.tracking(vm, Baseline(name, ("vda", "vdb"), made_at=made_at))
    assert (known["vda"], known["vdb"]) == (Reason.NONE, Reason.NONE)
    known = source.tracking(vm, Baseline(name, ("vda", "vdb"), made_at=str(int(made_at) - 1)))
    assert set(known.values()) == {Reason.SOURCE_ROLLED_BACK}


@pytest.mark.usefixtures("_no_checkpoints")
def test_a_bitmap_that_lost_its_marker_is_removed_and_one_that_is_not_there_is_told(
    guest: LabVm, source: Platform, vm: Vm, scratch: Path
) -> None:
    request = replace(request_of(vm, scratch, 45, checkpoint=True), tracked=("vdb",))
    with source.snapshot(Context(), vm, SnapshotMode.BACKUP, request):
        pass
    with guest.domain() as domain:
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
        domain.checkpointLookupByName(request.checkpoint).delete(flags)
    assert source.markers(vm) == {}
    assert "was forgotten" in source.remove_orphan(vm, request.checkpoint, ("vda", "vdb"))
    assert source.remove_orphan(vm, request.checkpoint, ("vdb",)) == ""
    assert "not found" in source.remove_orphan(vm, request.checkpoint, ("vdb",))
    assert source.markers(vm) == {}


# --- sweep ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [SnapshotMode.BACKUP, SnapshotMode.EXTERNAL])
def test_a_sweep_ends_what_a_dead_session_left_but_not_what_another_job_holds(
    guest: LabVm, source: Platform, vm: Vm, scratch: Path, mode: SnapshotMode
) -> None:
    write(guest, "before")
    before = live_paths(guest)
    command = [sys.executable, "-c", HOLD, guest.host.uri, guest.name, mode.value, JOB, str(scratch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "held\n"
        session.send_signal(signal.SIGKILL)
        session.wait()
    write(guest, "meanwhile")
    assert backup_runs(guest) == (mode is SnapshotMode.BACKUP)
    assert (live_paths(guest) != before) == (mode is SnapshotMode.EXTERNAL)
    assert source.sweep(Context(), source.describe_vm(guest.name), Tag("f" * 32, vm.uuid, 60)) == []
    assert backup_runs(guest) or live_paths(guest) != before
    done = source.sweep(Context(), source.describe_vm(guest.name), Tag(JOB, vm.uuid, 61))
    assert len(done) == (1 if mode is SnapshotMode.BACKUP else 2)
    assert all("of a dead session" in line for line in done)
    assert live_paths(guest) == before
    assert not backup_runs(guest)
    assert guest.run("dd if=/dev/vdb bs=9 count=1 iflag=fullblock 2>/dev/null") == "meanwhile"
    assert source.sweep(Context(), source.describe_vm(guest.name), Tag(JOB, vm.uuid, 62)) == []


@pytest.mark.usefixtures("_no_checkpoints")
@pytest.mark.parametrize("mode", [SnapshotMode.BACKUP, SnapshotMode.EXTERNAL])
def test_what_of_ours_a_host_has_is_listed_with_the_commands_that_remove_it(
    guest: LabVm, source: Platform, vm: Vm, scratch: Path, mode: SnapshotMode
) -> None:
    before = live_paths(guest)
    request = request_of(vm, scratch, 63, checkpoint=True)
    with guest.domain() as domain:
        domain.checkpointCreateXML("<domaincheckpoint><name>other-tool</name><disks><disk name='vda'/>"
                                   "<disk name='fda' checkpoint='no'/><disk name='vdc' checkpoint='no'/>"
                                   "</disks></domaincheckpoint>", 0)  # fmt: skip
    with source.snapshot(Context(), vm, mode, request):
        (traces,) = source.traces()
        deltas = {disk: path for disk, path in live_paths(guest).items() if path != before[disk]}
    assert (traces.name, traces.uuid, traces.active) == (vm.name, vm.uuid, True)
    assert traces.checkpoints == (request.checkpoint,)
    assert traces.backup == ("" if deltas else f"{request.tag}.sock")
    assert dict(traces.deltas) == deltas
    assert bool(deltas) == (mode is SnapshotMode.EXTERNAL)
    assert [path for path, _ in traces.images] == [deltas.get(disk.name, disk.path) for disk in vm.disks]
    for path in deltas.values():
        merge, remove = traces.by_hand[path]
        assert "blockcommit" in merge
        assert shlex.split(remove) == ["rm", "--", path]
    (after,) = source.traces()
    assert (after.backup, after.deltas) == ("", ())
    (command,) = after.by_hand[request.checkpoint]
    subprocess.run(command, shell=True, check=True)
    assert checkpoints(guest) == {"other-tool"}


# --- replica VMs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def spec(lab: Lab, vm: Vm, tmp_path: Path) -> Iterator[ReplicaVmSpec]:
    """A replica VM of the guest on an empty head; undefined at the end."""
    head = lab.directory / "head"
    head.mkdir(exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", head / "vda.qcow2", "64M"], check=True)
    made = ReplicaVmSpec(
        name="wéb server 1_replica", uuid=str(uuid.uuid4()), replica_id="replica-1", definition=vm.definition,
        disks={"vda": str(head / "vda.qcow2")}, head_dir=str(head), nvram="",
    )  # fmt: skip
    yield made
    with opened(lab.beta) as platform:
        platform.stop_replica(made.uuid)
        platform.undefine_replica(made.uuid)


def test_a_replica_vm_is_defined_started_stopped_and_undefined(target: Platform, spec: ReplicaVmSpec) -> None:
    assert target.replica_state(spec.uuid) is None
    warnings = "\n".join(target.define_replica(spec))
    assert "disk vdb is not replicated" in warnings
    assert "drive fda: the medium was ejected" in warnings
    assert target.replica_state(spec.uuid) is VmState.SHUT_OFF
    target.define_replica(spec)
    target.start_replica(spec.uuid)
    assert target.replica_state(spec.uuid) is VmState.RUNNING
    replica = target.describe_vm(spec.name)
    assert (replica.uuid, [disk.path for disk in replica.disks]) == (spec.uuid, list(spec.disks.values()))
    target.stop_replica(spec.uuid)
    target.stop_replica(spec.uuid)
    assert target.replica_state(spec.uuid) is VmState.SHUT_OFF
    target.undefine_replica(spec.uuid)
    target.undefine_replica(spec.uuid)
    assert target.replica_state(spec.uuid) is None
    assert target.list_vms() == ()
    target.stop_replica(spec.uuid)


def test_a_replica_vm_that_is_not_defined_cannot_be_started(target: Platform) -> None:
    with pytest.raises(NotFound):
        target.start_replica(str(uuid.uuid4()))


def test_a_foreign_vm_of_the_same_name_is_refused_and_left_alone(target: Platform, spec: ReplicaVmSpec) -> None:
    foreign = replace(spec, uuid=str(uuid.uuid4()))
    target.define_replica(foreign)
    try:
        before = target.describe_vm(spec.name)
        with pytest.raises(Refused, match="the target host has another VM of that name; rename or remove it"):
            target.define_replica(spec)
        assert target.describe_vm(spec.name) == before
    finally:
        target.undefine_replica(foreign.uuid)


def test_a_definition_that_was_made_is_the_same_when_it_is_made_again(
    lab: Lab, target: Platform, spec: ReplicaVmSpec
) -> None:
    def definition() -> str:
        with lab.beta.connection() as connection:
            return str(connection.lookupByUUIDString(spec.uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    target.define_replica(spec)
    first = definition()
    target.define_replica(replace(spec, definition=first))
    assert definition() == first


# --- crash and power off; these come last, because the guest starts anew ----------------------------------------------


@pytest.mark.usefixtures("_no_checkpoints")
def test_after_a_crash_of_the_hypervisor_no_bitmap_is_trusted(
    guest: LabVm, source: Platform, vm: Vm, scratch: Path
) -> None:
    request = request_of(vm, scratch, 70, checkpoint=True)
    with source.snapshot(Context(), vm, SnapshotMode.BACKUP, request):
        pass
    guest.process().signal(signal.SIGKILL)
    guest.wait_off()
    guest.start()
    guest.wait_agent()
    vm = source.describe_vm(guest.name)
    known = source.tracking(vm, Baseline(request.checkpoint, ("vda", "vdb")))
    assert not {known["vda"], known["vdb"]} & {Reason.NONE}
    again = replace(request_of(vm, scratch, 71), incremental=("vdb",), since=Baseline(request.checkpoint, ("vdb",)))
    with pytest.raises(TrackingLost):
        source.snapshot(Context(), vm, SnapshotMode.BACKUP, again).__enter__()
    assert not backup_runs(guest)
    source.keep_baseline(vm, Tag(JOB, vm.uuid, 72), "", "")
    assert checkpoints(guest) == set()


def test_a_vm_that_is_off_is_read_where_it_lies_and_needs_no_thaw(
    guest: LabVm, source: Platform, scratch: Path
) -> None:
    write(guest, "resting")
    guest.shutdown()
    vm = source.describe_vm(guest.name)
    assert (vm.state, vm.clean_shutdown) == (VmState.SHUT_OFF, True)
    assert source.thaw(vm.uuid, 5) == 0
    with source.snapshot(Context(), vm, SnapshotMode.AUTO, request_of(vm, scratch, 80)) as snapshot:
        assert {disk.name for disk in snapshot.disks} == {"vda", "vdb", "vdc"}
        assert all(isinstance(disk, ImageDisk) for disk in snapshot.disks)
        assert shown(snapshot, "vdb", 7) == b"resting"
        assert snapshot.baseline is None
    assert source.sweep(Context(), vm, Tag(JOB, vm.uuid, 81)) == []
