"""What cannot work is refused on one line, and neither the settings nor a restore point suffer from the attempt."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.system.aftermath import remove_vms
from tests.system.commands import Answer
from tests.system.installation import Installation
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm

VM = "bad"
REPLICA = f"{VM}_replica"
_SETTINGS = ("hosts", "datastores", "jobs", "job_vms", "replicas", "restore_points")


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Installation]:
    """A VM that is off, which is enough to be replicated, its job, and one restore point."""
    place = lab.directory / "test-bad"
    place.mkdir()
    try:
        made = Installation(lab, place)
        LabVm.create(lab.alpha, VM, lab.guest)
        made.job("nightly", VM)
        made.replicate("nightly")
        yield made
    finally:
        remove_vms(lab)


def refused(site: Installation, status: int, said: str, *arguments: str) -> Answer:
    """A command that must fail like this: one line on stderr, a single JSON document or nothing on stdout."""
    settings, files = _settings(site), _files(site.store)
    answer = site.run("--json", *arguments)
    assert answer.status == status, answer
    assert answer.err.startswith("error: ")
    assert answer.err.endswith("\n")
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.err
    assert re.search(said, answer.err), answer.err
    if answer.out:
        json.loads(answer.out)
    assert _settings(site) == settings
    assert _files(site.store) == files
    return answer


def _settings(site: Installation) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(site.home / "understudy.db")) as database:
        return {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in _SETTINGS}


def _files(store: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, but not of the last attempt's number and of what a running replica writes."""
    paths = [path for path in store.rglob("*") if path.is_file() and path.parent.name != "head"]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.name != ".lock"}


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("host 'nowhere': no such host", ("host", "check", "nowhere")),
        ("host 'nowhere': no such host", ("host", "remove", "nowhere")),
        ("host 'nowhere': no such host", ("datastore", "add", "new", "--host", "nowhere", "--path", "/srv")),
        ("datastore 'nowhere': no such datastore", ("datastore", "check", "nowhere")),
        ("datastore 'nowhere': no such datastore", ("replica", "adopt", "nowhere/some")),
        ("the datastore has no such replica; it has: bad_replica", ("replica", "adopt", "ds/some")),
        ("job 'nowhere': no such job", ("job", "run", "nowhere")),
        ("replica 'nowhere': no such replica", ("replica", "verify", "nowhere")),
        ("replica 'nowhere': no such replica", ("failover", "start", "nowhere")),
        ("'p9' of replica 'bad_replica': no such restore point", ("failover", "start", REPLICA, "--point", "p9")),
        ("'p9' of replica 'bad_replica': no such restore point", ("replica", "verify", REPLICA, "--point", "p9")),
        ("session 99: no such session", ("session", "show", "99")),
        ("session 99: no such session", ("session", "stop", "99")),
        ("it is not in failover", ("failover", "undo", REPLICA)),
        ("job create: .*'3M' is not one of", ("job", "create", "x", "--block-size", "3M")),
        ("job create: .*0 is not in the range", ("job", "create", "x", "--points", "0")),
        ("job create: .*'foo' is not one of", ("job", "create", "x", "--compression", "foo")),
        ("not a host address", ("host", "add", "x", "no-uri")),
        ("the name is taken", ("host", "add", "alpha", "qemu:///system")),
        ("it is used by", ("host", "remove", "alpha")),
    ],
)
def test_a_wrong_name_or_value_is_refused(site: Installation, said: str, arguments: tuple[str, ...]) -> None:
    assert refused(site, 2, said, *arguments).out == ""


def test_a_host_that_does_not_answer_fails_the_command_and_the_job(site: Installation) -> None:
    site.ok("host", "add", "dead", "qemu+unix:///system?socket=/nowhere/libvirt-sock")
    refused(site, 1, "^error: host qemu.unix:.*; check the URI", "host", "check", "dead")
    site.ok("job", "create", "dead", "--source", "dead", "--vm", VM, "--target", "beta", "--datastore", "ds")
    refused(site, 1, "run job 'dead': host qemu.unix:.*check the URI", "job", "run", "dead")


def test_an_address_of_an_unknown_kind_is_refused(site: Installation) -> None:
    site.ok("host", "add", "strange", "strange://there/")
    refused(site, 2, "unknown scheme", "host", "check", "strange")


def test_a_job_that_is_disabled_does_not_run(site: Installation) -> None:
    site.ok("job", "disable", "nightly")
    refused(site, 2, "the job is disabled; enable it", "job", "run", "nightly")
    site.ok("job", "enable", "nightly")


def test_a_datastore_that_is_not_there_fails_the_job(site: Installation) -> None:
    _datastore_job(site, "missing", site.place / "missing")
    refused(site, 1, "missing does not exist", "datastore", "check", "missing")
    refused(site, 1, "datastore 'missing': directory .* does not exist; mount or create it", "job", "run", "missing")


def test_a_datastore_that_is_read_only_fails_the_job(site: Installation) -> None:
    with _tmpfs(site.place / "readonly", "ro,size=8m") as path:
        _datastore_job(site, "readonly", path)
        refused(site, 1, "cannot be written", "datastore", "check", "readonly")
        refused(site, 1, "datastore 'readonly': .* is not writable", "job", "run", "readonly")


def test_a_datastore_that_is_too_small_fails_the_job_before_anything_is_written(site: Installation) -> None:
    with _tmpfs(site.place / "small", "size=4m") as path:
        _datastore_job(site, "small", path)
        refused(site, 1, "datastore 'small': .* free, .* needed", "job", "run", "small")
        assert [item.name for item in path.iterdir()] == [".understudy-datastore"]


def test_a_datastore_that_runs_full_keeps_its_points_and_heals_with_space(site: Installation) -> None:
    vm = LabVm.create(site.lab.alpha, "filling", site.lab.guest)
    taken = vm.disks[0].path.stat().st_blocks * 512
    with _tmpfs(site.place / "full", f"size={taken + (12 << 20)}") as path:
        _datastore_job(site, "full", path, vm.name)
        site.replicate("full")
        _change(vm, 24)
        settings, files = _settings(site), _files(path)
        answer = site.run("--json", "job", "run", "full")
        assert answer.status == 1
        assert "the datastore is full" in answer.err
        assert answer.err.count("\n") == 1, answer.err
        assert (_settings(site), _files(path)) == (settings, files)
        site.ok("replica", "verify", f"{vm.name}_replica")
        subprocess.run(["mount", "-o", "remount,size=200m", str(path)], check=True)
        (disk,) = site.replicate("full")["tasks"][0]["disks"]
        assert disk["sent_bytes"] >= 24 << 20
        site.ok("replica", "verify", f"{vm.name}_replica")
        site.ok("job", "delete", "full")
        site.ok("replica", "remove", f"{vm.name}_replica", "--delete-files")


def test_a_vm_that_is_gone_or_another_one_fails_the_job(site: Installation) -> None:
    vm = LabVm.create(site.lab.alpha, "fleeting", site.lab.guest)
    site.job("fleeting", vm.name)
    site.replicate("fleeting")
    vm.undefine()
    refused(site, 1, "VM 'fleeting': no host of the job has a VM of that name", "job", "run", "fleeting")
    LabVm.create(site.lab.alpha, "fleeting", site.lab.guest)
    refused(site, 1, "replica 'fleeting_replica': its source was a VM with UUID", "job", "run", "fleeting")


@pytest.mark.parametrize("kind", ["shareable", "lun", "hostdev"])
def test_a_vm_that_cannot_be_held_still_is_refused_by_its_job(site: Installation, kind: str) -> None:
    said = {
        "shareable": f"disk vda of VM '{kind}': it is shared with other VMs; exclude it with --exclude-disk",
        "lun": f"disk sda of VM '{kind}': it is passed through to the guest as a SCSI LUN; exclude it",
        "hostdev": f"replicate VM '{kind}': a SCSI disk of the host is passed through to it",
    }
    vm = LabVm.create(site.lab.alpha, kind, site.lab.guest)
    _redefine(vm, kind)
    site.job(kind, kind)
    refused(site, 1, said[kind], "job", "run", kind)


def test_a_guest_without_an_agent_fails_a_job_that_requires_one(site: Installation) -> None:
    vm = LabVm.create(site.lab.alpha, "mute", site.lab.guest)
    _redefine(vm, "mute")
    vm.start()
    site.job("mute", vm.name, options=("--guest-processing", "require"))
    refused(site, 1, "guest processing of VM 'mute': the VM has no guest agent channel; install", "job", "run", "mute")


def test_a_scratch_directory_out_of_the_emulators_reach_is_named(site: Installation) -> None:
    vm = LabVm.create(site.lab.alpha, "walled", site.lab.guest)
    vm.start()
    walled = site.place / "walled"
    walled.mkdir(mode=0o700)
    site.ok("host", "add", "walled", site.lab.alpha.uri, "--scratch-dir", str(walled / "scratch"))
    site.ok("job", "create", "walled", "--source", "walled", "--vm", vm.name, "--target", "beta", "--datastore", "ds")
    answer = site.run("--json", "job", "run", "walled")
    assert answer.status == 1
    assert "--scratch-dir" in answer.err
    assert str(walled / "scratch") in answer.err
    assert answer.err.count("\n") == 1
    with vm.domain() as domain:
        assert domain.listAllCheckpoints() == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "newer", "garbage"])
def test_a_damaged_record_is_refused_and_left_as_it_is(site: Installation, damage: str) -> None:
    path = site.store / REPLICA / "replica.json"
    good = path.read_bytes()
    bad = {
        "cut": good[: len(good) // 2],
        "flipped": good.replace(b'"session": 1', b'"session": 3'),
        "newer": good.replace(b'"format": 1', b'"format": 2'),
        "garbage": os.urandom(4096),
    }[damage]
    assert bad != good
    path.write_bytes(bad)
    try:
        said = "knows formats up to 1; use a newer Understudy" if damage == "newer" else "replica.json"
        more = (("replica", "verify", REPLICA), ("failover", "start", REPLICA), ("replica", "adopt", f"ds/{REPLICA}"))
        for command in (("job", "run", "nightly"), ("replica", "show", REPLICA), *(more if damage == "cut" else ())):
            refused(site, 1, said, *command)
        assert path.read_bytes() == bad
    finally:
        path.write_bytes(good)
    site.ok("replica", "verify", REPLICA)


def test_a_database_of_a_newer_program_is_refused_untouched(site: Installation) -> None:
    with _spoilt_database(site) as path:
        with closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE alembic_version SET version_num = '9999'")
            database.commit()
        _refused_database(site, path, "its schema is '9999', this program knows up to .* newer or another Understudy")


def test_a_database_that_is_garbage_is_refused_untouched(site: Installation) -> None:
    with _spoilt_database(site) as path:
        path.write_bytes(os.urandom(8192))
        _refused_database(site, path, "the file is damaged: restore it from a copy")


def test_failover_is_refused_where_it_makes_no_sense(site: Installation) -> None:
    site.ok("failover", "start", REPLICA)
    try:
        refused(site, 2, "it is in failover already", "failover", "start", REPLICA)
        refused(site, 1, "it is in failover; run 'understudy failover undo' first", "job", "run", "nightly")
        refused(site, 2, "its VM runs", "replica", "remove", REPLICA, "--delete-files")
    finally:
        site.ok("failover", "undo", REPLICA)
    refused(site, 2, "it is not in failover", "failover", "undo", REPLICA)
    site.ok("replica", "verify", REPLICA)
    site.replicate("nightly")


def _datastore_job(site: Installation, name: str, path: Path, vm: str = VM) -> None:
    site.ok("datastore", "add", name, "--host", "beta", "--path", str(path))
    site.ok("job", "create", name, "--source", "alpha", "--vm", vm, "--target", "beta", "--datastore", name)


@contextmanager
def _tmpfs(path: Path, options: str) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _change(vm: LabVm, mebibytes: int) -> None:
    """Overwrite the beginning of a disk whose VM is off."""
    act = f"write -P 77 1M {mebibytes}M"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", act, str(vm.disks[0].path)], check=True, capture_output=True)


def _redefine(vm: LabVm, kind: str) -> None:
    """Give a VM that is off what must not be replicated, or take its agent."""
    with vm.domain() as domain:
        root = ET.fromstring(domain.XMLDesc())
        devices = root.find("devices")
        assert devices is not None
        if kind == "shareable":
            disk = devices.find("disk")
            assert disk is not None
            ET.SubElement(disk, "shareable")
            driver = disk.find("driver")
            assert driver is not None
            driver.set("type", "raw")  # libvirt shares no other format
        elif kind == "lun":
            ET.SubElement(devices, "controller", type="scsi", model="virtio-scsi")
            disk = ET.SubElement(devices, "disk", type="block", device="lun")
            ET.SubElement(disk, "driver", name="qemu", type="raw")
            ET.SubElement(disk, "source", dev="/dev/null")
            ET.SubElement(disk, "target", dev="sda", bus="scsi")
        elif kind == "hostdev":
            ET.SubElement(devices, "controller", type="scsi", model="virtio-scsi")
            device = ET.SubElement(devices, "hostdev", mode="subsystem", type="scsi")
            source = ET.SubElement(device, "source")
            ET.SubElement(source, "adapter", name="scsi_host0")
            ET.SubElement(source, "address", bus="0", target="0", unit="0")
        else:
            for channel in devices.findall("channel"):
                devices.remove(channel)
        domain.connect().defineXML(ET.tostring(root, encoding="unicode"))


@contextmanager
def _spoilt_database(site: Installation) -> Iterator[Path]:
    """A home of its own with a copy of the site's database, to be spoilt."""
    home = site.place / "spoilt"
    home.mkdir(exist_ok=True)
    path = home / "understudy.db"
    with closing(sqlite3.connect(site.home / "understudy.db")) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
    yield path
    path.unlink()


def _refused_database(site: Installation, path: Path, said: str) -> None:
    before = path.read_bytes()
    for command in (("job", "list"), ("job", "run", "nightly"), ("host", "check", "alpha")):
        answer = site.run("--home", str(path.parent), "--json", *command)
        assert (answer.status, answer.out) == (1, ""), answer
        assert re.search(said, answer.err), answer.err
        assert answer.err.count("\n") == 1
        assert answer.err.startswith("error: ")
    assert path.read_bytes() == before
