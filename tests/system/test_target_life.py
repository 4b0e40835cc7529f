"""What happens on the target behind our back: lost records, damaged files, unmounted and moved datastores, VMs by hand.

One running VM serves all cases; each makes the points that it needs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import pytest

from tests.system.aftermath import Bench, bench
from tests.system.installation import Installation
from tests.system.steps import run_in_replica
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm


@pytest.fixture(scope="module")
def ground(lab: Lab) -> Iterator[Bench]:
    """A VM with three points."""
    with bench(lab, "target-life", points=4) as made:
        for _ in range(3):
            made.write()
            made.assert_healed("nightly", reasons=("", "first_run"))
        yield made
        made.verify_all()


@pytest.fixture
def target(ground: Bench) -> Iterator[Bench]:
    """The same for each case; after it a run is incremental and clean, and all points show what they showed before."""
    yield ground
    ground.write()
    ground.assert_healed("nightly")


def refused(target: Bench, *arguments: str) -> str:
    answer = target.installation.run(*arguments)
    assert answer.status in (1, 2), answer
    return answer.err


def task_error(target: Bench) -> str:
    answer = target.installation.run("--json", "job", "run", "nightly")
    assert answer.status == 1, answer
    return str(answer.json["tasks"][0]["error"])


def replica_domain(target: Bench) -> LabVm:
    return LabVm(target.installation.lab.beta, target.replica)


def test_a_lost_record_is_rebuilt_and_the_next_session_is_incremental(target: Bench) -> None:
    place = target.place(target.replica)
    before = json.loads((place / "replica.json").read_text())["replica"]
    layers = sorted(path.name for path in (place / "layers").iterdir())
    (place / "replica.json").unlink()
    command = f"'understudy replica rebuild ds/{target.replica}'"
    assert command in task_error(target)
    assert command in refused(target, "replica", "show", target.replica)
    assert command in refused(target, "replica", "adopt", f"ds/{target.replica}")
    assert command in refused(target, "failover", "start", target.replica)
    assert sorted(path.name for path in (place / "layers").iterdir()) == layers
    tried = target.installation.json("replica", "rebuild", f"ds/{target.replica}", "--dry-run")
    assert not (place / "replica.json").exists()
    rebuilt = target.installation.json("replica", "rebuild", f"ds/{target.replica}")
    assert tried == rebuilt | {"dry_run": True}
    assert (rebuilt["left_out"], rebuilt["files"], rebuilt["notes"]) == ({}, [], [])
    after = json.loads((place / "replica.json").read_text())["replica"]
    assert after == before
    assert "neither lost nor damaged" in refused(target, "replica", "rebuild", f"ds/{target.replica}")


def test_a_damaged_record_is_rebuilt_without_what_cannot_be_proved(target: Bench) -> None:
    place, ids = target.place(target.replica), target.point_ids()
    record = place / "replica.json"
    data = bytearray(record.read_bytes())
    data[len(data) // 2] ^= 1
    record.write_bytes(data)
    lost = place / "digests" / f"vda-{ids[1]}.digest"
    saved = lost.read_bytes()
    lost.write_bytes(saved[:-1] + bytes([saved[-1] ^ 1]))
    assert "replica.json is damaged" in task_error(target)
    rebuilt = target.installation.json("replica", "rebuild", f"ds/{target.replica}")
    assert rebuilt["points"] == [point for point in ids if point != ids[1]]
    assert rebuilt["left_out"] == {ids[1]: "the digest file of disk vda is missing or damaged"}
    assert f"digests/{lost.name}" in rebuilt["files"]
    target.check_points()
    target.write()
    (disk,) = target.installation.replicate("nightly")["tasks"][0]["disks"]
    assert disk["mode"] == "incremental"
    assert lost.exists()
    # Once the points on both sides of it are merged away, so is the layer between them; what was kept goes by hand.
    while ids[2] in target.point_ids():
        target.write()
        target.installation.replicate("nightly")
    for name in rebuilt["files"]:
        (place / name).unlink(missing_ok=True)


def test_damaged_and_lost_files_of_a_point_are_shown_and_failover_names_a_good_one(target: Bench) -> None:
    place, ids = target.place(target.replica), target.point_ids()
    definition = place / "points" / f"{ids[-1]}.xml"
    text = definition.read_bytes()
    definition.unlink()
    shown = target.installation.json("replica", "show", target.replica)
    assert shown["damage"] == {ids[-1]: [f"{definition.name} is missing"]}
    said = refused(target, "failover", "start", target.replica)
    assert f"{definition.name} is missing; the newest undamaged one is {ids[-2]}" in said
    target.write()
    target.assert_healed("nightly")
    definition.write_bytes(text)
    definition.chmod(0o600)

    ids = target.point_ids()
    layer = place / "layers" / target.record(target.replica)["points"][-1]["disks"][0]["layer"]
    content = layer.read_bytes()
    layer.unlink()
    points = target.installation.run("replica", "points", target.replica).out
    assert "missing" in points
    assert f"the newest undamaged one is {ids[-2]}" in refused(target, "failover", "start", target.replica)
    (disk,) = target.installation.replicate("nightly")["tasks"][0]["disks"]
    assert (disk["mode"], disk["reason"]) == ("full", "replica_changed")
    assert ids[-1] in target.installation.json("replica", "show", target.replica)["damage"]
    layer.write_bytes(content)
    layer.chmod(0o400)
    assert target.installation.json("replica", "show", target.replica)["damage"] == {}


def test_an_unmounted_datastore_is_noticed_and_nothing_is_made_in_the_empty_directory(target: Bench) -> None:
    store = target.installation.store
    away = store.with_name("unmounted")
    store.rename(away)
    store.mkdir(mode=0o755)
    asked = "this is not the datastore that was added: is it mounted?"
    try:
        assert asked in task_error(target)
        for command in (("failover", "start", target.replica), ("replica", "verify", target.replica),
                        ("replica", "remove", target.replica, "--delete-files"), ("datastore", "check", "ds")):
            assert asked in refused(target, *command)
        assert list(store.iterdir()) == []
    finally:
        store.rmdir()
        away.rename(store)


def test_a_datastore_that_moved_is_followed_and_the_replica_vm_with_it(target: Bench) -> None:
    installation, store = target.installation, target.installation.store
    moved = store.with_name("moved")
    store.rename(moved)
    try:
        assert "does not exist" in task_error(target)
        assert "is it mounted?" in refused(target, "datastore", "set", "ds", "--path", str(installation.place))
        installation.ok("datastore", "set", "ds", "--path", str(moved))
        target.write()
        (disk,) = installation.replicate("nightly")["tasks"][0]["disks"]
        assert disk["mode"] == "incremental"
        assert _disk_of(target) == str(moved / target.replica / "head" / "vda.qcow2")
    finally:
        moved.rename(store)
        installation.ok("datastore", "set", "ds", "--path", str(store))


def test_a_replica_that_moved_is_adopted_from_its_new_place_and_continued(target: Bench) -> None:
    installation = target.installation
    other = installation.store.with_name("other")
    other.mkdir()
    installation.ok("datastore", "add", "ds2", "--host", "beta", "--path", str(other))
    _copy(target.place(target.replica), other)
    said = refused(target, "replica", "adopt", f"ds2/{target.replica}")
    assert f"it is known as 'ds/{target.replica}', and is there" in said
    target.place(target.replica).rename(installation.place / "gone")
    adopted = installation.json("replica", "adopt", f"ds2/{target.replica}")
    assert adopted["datastore"] == "ds2"
    assert [item["datastore"] for item in installation.json("replica", "list")] == ["ds2"]
    assert _disk_of(target) == str(other / target.replica / "head" / "vda.qcow2")
    installation.ok("job", "delete", "nightly")
    installation.ok("job", "create", "nightly", "--source", "alpha", "--target", "beta", "--datastore", "ds2",
                    "--vm", target.vm.name, "--points", "4")
    (disk,) = installation.replicate("nightly")["tasks"][0]["disks"]
    assert disk["mode"] == "incremental", disk
    # Back to where the other cases expect it.
    (other / target.replica).rename(target.place(target.replica))
    installation.json("replica", "adopt", f"ds/{target.replica}")
    installation.ok("job", "delete", "nightly")
    installation.job("nightly", target.vm.name, options=("--points", "4"))


def test_a_replica_vm_that_was_undefined_is_defined_by_failover_and_by_the_next_session(target: Bench) -> None:
    installation = target.installation
    replica_domain(target).undefine(delete_disks=False)
    installation.ok("failover", "start", target.replica)
    assert run_in_replica(installation, target.replica, "echo up").strip() == "up"
    installation.ok("failover", "undo", target.replica)
    replica_domain(target).undefine(delete_disks=False)
    target.write()
    target.assert_healed("nightly")
    assert _disk_of(target) == str(target.place(target.replica) / "head" / "vda.qcow2")


def test_a_replica_vm_that_was_defined_on_a_layer_is_put_back_on_the_head_and_the_disk_sent_anew(target: Bench) -> None:
    layer = target.place(target.replica) / "layers" / target.record(target.replica)["points"][-1]["disks"][0]["layer"]
    with target.installation.lab.beta.connection() as beta:
        root = ET.fromstring(beta.lookupByName(target.replica).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        source = root.find("devices/disk/source")
        assert source is not None
        source.set("file", str(layer))
        beta.defineXML(ET.tostring(root, encoding="unicode"))
    target.write()
    session = target.installation.replicate("nightly")
    (disk,) = session["tasks"][0]["disks"]
    assert (disk["mode"], disk["reason"]) == ("full", "replica_changed")
    assert any(f"by hand on layer {layer.name}" in text for text in session["tasks"][0]["warnings"])
    assert _disk_of(target) == str(target.place(target.replica) / "head" / "vda.qcow2")


def test_a_replica_vm_that_is_started_by_hand_harms_no_point_while_it_runs_is_paused_and_off(target: Bench) -> None:
    installation = target.installation
    replica_domain(target).start()
    run_in_replica(installation, target.replica, "dd if=/dev/urandom of=/data/hand bs=64k count=4 conv=fsync")
    for act, said in (("", "is running although no failover was started"),
                      ("suspend", "is running although no failover was started"), ("destroy", "was started by hand")):
        if act:
            with installation.lab.beta.connection() as beta:
                getattr(beta.lookupByName(target.replica), act)()
        target.write()
        (task,) = installation.replicate("nightly")["tasks"]
        assert task["disks"][0]["mode"] == "incremental"
        assert any(said in text for text in task["warnings"])
        assert "failover undo" in refused(target, "failover", "start", target.replica)
        target.check_points()
    installation.ok("failover", "undo", target.replica)


def _disk_of(target: Bench) -> str:
    """The file that the replica VM is defined on."""
    with target.installation.lab.beta.connection() as beta:
        root = ET.fromstring(beta.lookupByName(target.replica).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    source = root.find("devices/disk/source")
    assert source is not None
    return source.get("file", "")


def _copy(directory: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", str(directory), str(to)], check=True)


def test_the_replica_is_rebuilt_by_a_controller_that_never_saw_it(lab: Lab, target: Bench) -> None:
    (target.place(target.replica) / "replica.json").unlink()
    place = target.installation.place / "heir"
    place.mkdir()
    heir = Installation(lab, place)
    heir.ok("datastore", "add", "found", "--host", "beta", "--path", str(target.installation.store))
    assert _marker(heir, "found") == _marker(target.installation, "ds")
    rebuilt = heir.json("replica", "rebuild", f"found/{target.replica}")
    assert rebuilt["left_out"] == {}
    adopted = heir.json("replica", "adopt", f"found/{target.replica}")
    assert adopted["newest_point"] == rebuilt["points"][-1]


def _marker(installation: Installation, name: str) -> str:
    (datastore,) = [item for item in installation.json("datastore", "list") if item["name"] == name]
    assert datastore["marker"]
    return str(datastore["marker"])
