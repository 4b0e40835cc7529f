"""What the product asks of libvirt works on lab hosts: freeze, pull-mode backup, checkpoints, snapshot and commit."""

from __future__ import annotations

import os
from pathlib import Path
from time import sleep

import libvirt
import nbd
import pytest

from understudy.lab.hosts import qemu_user
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm
from understudy.lab.writer import GuestWriter, verify_files

pytestmark = pytest.mark.system

BLOCK = 64 << 10
DISK_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
SNAPSHOT_FLAGS = DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA


@pytest.fixture
def scratch(lab: Lab) -> Path:
    """A directory where the QEMU user may make sockets and scratch files."""
    path = lab.directory / "scratch"
    path.mkdir(exist_ok=True)
    os.chown(path, qemu_user().pw_uid, qemu_user().pw_gid)
    return path


def test_freeze_and_thaw_reach_the_guest_file_systems(vm: LabVm) -> None:
    with vm.domain() as domain:
        assert domain.fsFreeze() == 2
        assert domain.fsThaw() == 2


def test_pull_mode_backup_shows_exactly_the_changed_blocks(vm: LabVm, scratch: Path) -> None:
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=4 oflag=direct")
    _backup(vm, scratch, "first", None)
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=64k count=1 seek=100 oflag=direct")
    vm.run(f"blkdiscard -z -o {200 * BLOCK} -l {BLOCK} /dev/vdb || dd if=/dev/zero of=/dev/vdb bs=64k count=1 seek=200")
    vm.run("sync")
    assert _backup(vm, scratch, "second", "first") == [100, 200]


def _backup(vm: LabVm, scratch: Path, checkpoint: str, since: str | None) -> list[int]:
    """Run one pull-mode backup of vdb; the numbers of the changed 64 KiB blocks."""
    socket = scratch / "backup.sock"
    socket.unlink(missing_ok=True)
    incremental = f"<incremental>{since}</incremental>" if since else ""
    backup = (
        f"<domainbackup mode='pull'>{incremental}<server transport='unix' socket='{socket}'/><disks>"
        "<disk name='vda' backup='no'/><disk name='vdc' backup='no'/>"
        f"<disk name='vdb' backup='yes' type='file'><scratch file='{scratch}/vdb.scratch'/></disk>"
        "</disks></domainbackup>"
    )
    disks = "<disks><disk name='vda' checkpoint='no'/><disk name='vdc' checkpoint='no'/><disk name='vdb'/></disks>"
    with vm.domain() as domain:
        domain.backupBegin(backup, f"<domaincheckpoint><name>{checkpoint}</name>{disks}</domaincheckpoint>")
        try:
            return _dirty_blocks(socket, "backup-vdb") if since else []
        finally:
            domain.abortJob()


def _dirty_blocks(socket: Path, bitmap: str) -> list[int]:
    context = f"qemu:dirty-bitmap:{bitmap}"
    blocks: list[int] = []

    def collect(_context: str, offset: int, entries: list[int], _error: object) -> int:
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if flags:
                blocks.extend(range(offset // BLOCK, (offset + length) // BLOCK))
            offset += length
        return 0

    handle = nbd.NBD()
    handle.add_meta_context(context)
    handle.set_export_name("vdb")
    handle.connect_unix(str(socket))
    assert handle.can_meta_context(context)
    handle.block_status(handle.get_size(), 0, collect)
    handle.shutdown()
    return blocks


def test_an_external_snapshot_is_committed_while_the_guest_writes(vm: LabVm) -> None:
    system = vm.disks[0].path
    overlay = system.with_suffix(".delta")
    disk = f"<disk name='vda' snapshot='external'><source file='{overlay}'/></disk>"
    others = "<disk name='vdb' snapshot='no'/><disk name='vdc' snapshot='no'/>"
    with GuestWriter.in_files(vm) as writer, vm.domain() as domain:
        domain.snapshotCreateXML(f"<domainsnapshot><disks>{disk}{others}</disks></domainsnapshot>", SNAPSHOT_FLAGS)
        before = writer.rounds()
        while writer.rounds() < before + 10:
            sleep(0.1)
        _commit(domain, overlay)
    assert not _sources(vm, overlay)
    assert verify_files(vm) > 0


def _commit(domain: libvirt.virDomain, overlay: Path) -> None:
    domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    for _ in range(600):
        try:
            domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
                raise
            sleep(0.1)
        else:
            overlay.unlink()
            return
    raise AssertionError("the commit did not become ready")


def _sources(vm: LabVm, overlay: Path) -> bool:
    with vm.domain() as domain:
        return str(overlay) in domain.XMLDesc()


def test_a_writing_guest_changes_its_raw_device(vm: LabVm) -> None:
    with GuestWriter.on_device(vm) as writer:
        before = vm.run("md5sum /dev/vdb")
        while writer.rounds() < 16:
            sleep(0.1)
    assert vm.run("md5sum /dev/vdb") != before


def test_a_copied_disk_boots_on_the_other_host(lab: Lab, vm: LabVm) -> None:
    vm.run("echo replicated >/data/marker && sync")
    clone = LabVm.create(lab.beta, "clone of it", lab.guest)
    with vm.domain() as domain:
        domain.fsFreeze()
        clone.disks[0].path.write_bytes(vm.disks[0].path.read_bytes())
        domain.fsThaw()
    clone.start()
    clone.wait_agent()
    assert clone.read_file("/data/marker") == b"replicated\n"
    clone.shutdown()
    clone.undefine()
