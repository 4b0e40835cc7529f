"""The XML that asks libvirt for snapshots and checkpoints: every disk is named, and only wanted ones take part."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.snapshot import SnapshotRequest, Tag
from understudy.platforms.libvirt.backup import backup_xml, is_ours, socket_path
from understudy.platforms.libvirt.checkpoints import checkpoint_xml
from understudy.platforms.libvirt.external import delta_path, snapshot_xml

TAG = Tag("0123456789abcdef", "6f7a7f2e-0e1b-4c3e-9d0b-1f3f3a1b2c3d", 42)
DISKS = (
    Disk("vda", "/images/wéb & <co>/a.qcow2", "qcow2", 1, tracked=True),
    Disk("sda", "/dev/vg0/data", "raw", 1),
    Disk("vdb", "/images/b.qcow2", "qcow2", 1, tracked=True),
)
VM = Vm("web", "u", VmState.RUNNING, "x86_64", "q35", "bios", 1, 1, DISKS, (), True, True, "<domain/>")
REQUEST = SnapshotRequest(
    TAG, ("vda", "vdb"), ("vdb",), "understudy-old", f"{TAG}-beef", ("vda", "vdb"), "/var/tmp/scratch"
)
SUBSETS = st.sets(st.sampled_from(["vda", "sda", "vdb"]))


def by_name(xml: str) -> dict[str, ET.Element]:
    elements = list(ET.fromstring(xml).iterfind("disks/disk"))
    found = {element.get("name", ""): element for element in elements}
    assert len(found) == len(elements)
    return found


@given(SUBSETS, SUBSETS)
def test_a_backup_job_names_every_disk_and_reads_only_the_wanted(wanted: set[str], incremental: set[str]) -> None:
    request = replace(REQUEST, disks=tuple(wanted), incremental=tuple(incremental & wanted))
    disks = by_name(backup_xml(VM, request))
    assert set(disks) == {"vda", "sda", "vdb"}
    assert {name for name, disk in disks.items() if disk.get("backup") == "yes"} == wanted
    for name, disk in disks.items():
        assert disk.get("backup") in ("yes", "no")
        if name not in wanted:
            assert set(disk.attrib) == {"name", "backup"}
        else:
            assert (disk.get("incremental") == "understudy-old") == (name in incremental)
            assert disk.get("backupmode") == ("incremental" if name in incremental else "full")
            assert (disk.get("exportbitmap") is not None) == (name in incremental)


def test_a_backup_job_is_pulled_from_a_tagged_socket_with_tagged_scratch_files() -> None:
    root = ET.fromstring(backup_xml(VM, REQUEST))
    server = root.find("server")
    assert root.get("mode") == "pull"
    assert server is not None
    assert server.attrib == {"transport": "unix", "socket": f"/var/tmp/scratch/{TAG}.sock"}
    scratches = [element.get("file") for element in root.iter("scratch")]
    assert scratches == [f"/var/tmp/scratch/{TAG}-vda.scratch", f"/var/tmp/scratch/{TAG}-vdb.scratch"]
    assert {element.get("type") for element in root.iter("driver")} == {"qcow2"}
    assert {disk.get("exportname") for disk in root.iterfind("disks/disk[@backup='yes']")} == {"vda", "vdb"}


@given(SUBSETS, SUBSETS)
def test_an_external_snapshot_names_every_disk_and_takes_only_the_wanted(wanted: set[str], tracked: set[str]) -> None:
    disks = by_name(snapshot_xml(VM, replace(REQUEST, disks=tuple(wanted), tracked=tuple(tracked))))
    assert {name: disk.get("snapshot") for name, disk in disks.items()} == {
        name: "external" if name in wanted else "no" for name in ("vda", "sda", "vdb")
    }


def test_an_external_snapshot_leaves_drives_with_media_alone() -> None:
    disks = by_name(snapshot_xml(VM, REQUEST, ["fda", "hdc"]))
    assert [disks[name].get("snapshot") for name in ("fda", "hdc", "vda")] == ["no", "no", "external"]


def test_a_delta_lies_beside_its_image_and_that_of_a_block_device_in_the_scratch_directory() -> None:
    assert delta_path(DISKS[0], REQUEST) == f"/images/wéb & <co>/{TAG}-vda.delta"
    assert delta_path(DISKS[1], REQUEST) == f"/var/tmp/scratch/{TAG}-sda.delta"
    disks = by_name(snapshot_xml(VM, REQUEST))
    source = disks["vda"].find("source")
    assert source is not None
    assert source.get("file") == delta_path(DISKS[0], REQUEST)
    assert "&amp; &lt;co>" in snapshot_xml(VM, REQUEST) or "&amp; &lt;co&gt;" in snapshot_xml(VM, REQUEST)


@given(SUBSETS)
def test_a_checkpoint_names_every_disk_and_marks_only_the_tracked(tracked: set[str]) -> None:
    xml = checkpoint_xml("cp ü", tracked, ("vda", "sda", "vdb"))
    assert ET.fromstring(xml).findtext("name") == "cp ü"
    assert {name: disk.get("checkpoint") for name, disk in by_name(xml).items()} == {
        name: "bitmap" if name in tracked else "no" for name in ("vda", "sda", "vdb")
    }


@pytest.mark.parametrize(
    ("socket", "ours"),
    [
        (socket_path(REQUEST), True),
        (f"/elsewhere/{replace(TAG, session=7)}.sock", True),
        (f"/var/tmp/scratch/{replace(TAG, job_id='f' * 32)}.sock", False),
        (f"/var/tmp/scratch/{replace(TAG, vm_uuid='other')}.sock", False),
        ("/run/virtnbdbackup.sock", False),
        (f"/var/tmp/{TAG.prefix}/foreign.sock", False),
    ],
)
def test_a_backup_job_is_ours_only_by_the_tag_in_its_sockets_name(socket: str, ours: bool) -> None:
    job = f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/></domainbackup>"
    assert is_ours(job, TAG) == ours


def test_no_backup_job_and_a_push_job_are_not_ours() -> None:
    assert not is_ours("", TAG)
    assert not is_ours("<domainbackup mode='push'/>", TAG)
    assert not is_ours("<domainbackup mode='pull'><server name='localhost' port='10809'/></domainbackup>", TAG)
