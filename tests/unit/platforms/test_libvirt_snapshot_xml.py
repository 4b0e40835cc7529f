"""The XML that asks libvirt for snapshots and checkpoints: every disk is named, and only wanted ones take part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import cast
from xml.etree import ElementTree as ET

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import PlatformError
from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.replica import Baseline
from understudy.model.snapshot import ServedDisk, SnapshotRequest, Tag
from understudy.platforms.libvirt.backup import PORTS, backup_snapshot, backup_xml, is_ours, socket_path
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
    TAG, ("vda", "vdb"), ("vdb",), Baseline("understudy-old", ("vdb",)), f"{TAG}-beef", ("vda", "vdb"),
    "/var/tmp/scratch",
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


NETWORK = replace(REQUEST, serve_at="kvm1.lan")


def test_a_backup_job_for_other_hosts_is_pulled_by_tls_and_keeps_its_scratch_files_beside_the_images() -> None:
    root = ET.fromstring(backup_xml(VM, NETWORK, ("10.0.0.7", 10811)))
    server = root.find("server")
    assert server is not None
    assert server.attrib == {"transport": "tcp", "tls": "yes", "name": "10.0.0.7", "port": "10811"}
    scratches = [element.get("file") for element in root.iter("scratch")]
    assert scratches == [f"/images/wéb & <co>/{TAG}-vda.scratch", f"/images/{TAG}-vdb.scratch"]
    assert {disk.get("exportname") for disk in root.iterfind("disks/disk[@backup='yes']")} == {
        f"{TAG}-vda", f"{TAG}-vdb"
    }  # fmt: skip


class Domain:
    """A domain on a host where some ports are taken."""

    def __init__(self, taken: Collection[int], error: str = "Failed to bind socket: Address already in use") -> None:
        self.taken = taken
        self.error = error
        self.tried: list[int] = []

    def backupBegin(self, xml: str, checkpoint: str | None) -> None:  # noqa: N802 - libvirt's name
        server = ET.fromstring(xml).find("server")
        assert server is not None
        self.tried.append(int(server.get("port", "")))
        if self.tried[-1] in self.taken:
            raise libvirt.libvirtError(self.error)

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return 0


def served_by(domain: Domain, serve_at: str, request: SnapshotRequest = NETWORK) -> list[ServedDisk]:
    with backup_snapshot(cast("libvirt.virDomain", domain), VM, replace(request, serve_at=serve_at)) as snapshot:
        return [disk for disk in snapshot.disks if isinstance(disk, ServedDisk)]


def test_a_port_that_is_taken_is_passed_over() -> None:
    domain = Domain([PORTS[0], PORTS[1]])
    vda, vdb = served_by(domain, "127.0.0.1")
    assert domain.tried == list(PORTS[:3])
    assert vda == ServedDisk("vda", "", f"{TAG}-vda", "", f"127.0.0.1:{PORTS[2]}")
    assert vdb.dirty_context == "qemu:dirty-bitmap:backup-vdb"


def test_an_address_of_the_sixth_version_is_in_brackets_before_its_port() -> None:
    assert served_by(Domain([]), "::1")[0].address == f"[::1]:{PORTS[0]}"


@pytest.mark.parametrize(
    ("said", "todo", "tries"),
    [
        ("Failed to bind socket: Address already in use", "let fewer snapshots be open", len(PORTS)),
        ("Failed to bind socket: Cannot assign requested address", "host set --nbd-address", 1),
        ("Unable to access credentials /etc/pki/qemu/ca-cert.pem", "understudy host certificate", 1),
        ("Cannot store dirty bitmaps in qcow2 v2 files", "qemu-img amend -o compat=1.1", 1),
    ],
)
def test_what_keeps_an_emulator_from_serving_is_told_with_what_to_do(said: str, todo: str, tries: int) -> None:
    domain = Domain(PORTS, said)
    with pytest.raises(PlatformError, match=todo):
        served_by(domain, "127.0.0.1", replace(NETWORK, incremental=()))
    assert len(domain.tried) == tries


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(PlatformError, match=r"address of no\.such\.name\.invalid is not known"):
        served_by(Domain([]), "no.such.name.invalid")


def test_a_backup_job_for_other_hosts_is_known_by_its_exports() -> None:
    xml = backup_xml(VM, NETWORK, ("10.0.0.7", 10811))
    assert is_ours(xml, TAG)
    assert is_ours(xml, replace(TAG, session=7))
    assert not is_ours(xml, replace(TAG, job_id="fedcba9876543210"))


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
