"""The replica VM: made with the first point, harmless when started by hand, started from any point, adopted."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt

from tests.system.installation import Installation
from tests.system.steps import (
    INCREMENTAL,
    QUIET,
    assert_points_are,
    our_checkpoints,
    published_files,
    replica_directory,
    replicate_instant,
    replicate_off,
    replicate_paused,
    run_in_replica,
)
from understudy.lab.vm import LabVm


def _definition(installation: Installation, name: str) -> ET.Element | None:
    """The persistent definition on beta, or None."""
    with installation.lab.beta.connection() as beta:
        found = [domain for domain in beta.listAllDomains() if domain.name() == name]
        return ET.fromstring(found[0].XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) if found else None


def _on_beta(installation: Installation, name: str) -> LabVm:
    return LabVm(installation.lab.beta, name)


def test_the_replica_vm_is_ready_with_the_first_point_and_is_made_again_when_lost(installation: Installation) -> None:
    lab = installation.lab
    vm = LabVm.create(lab.alpha, "ready", lab.guest)
    with lab.alpha.connection() as alpha:
        domain = alpha.lookupByName(vm.name)
        xml = ET.fromstring(domain.XMLDesc(0))
        nic = xml.find("devices/interface")
        assert nic is not None
        nic.set("type", "network")
        ET.SubElement(nic, "source", network="office lan")
        alpha.defineXML(ET.tostring(xml, encoding="unicode"))
        source_uuid = domain.UUIDString()
    installation.job("nightly", vm.name, options=("--suffix", "_dr", *QUIET))
    first = replicate_off(installation, vm, "nightly")
    assert any(vm.mac in text and "no network 'office lan'" in text for text in first.task["warnings"])
    made = _definition(installation, "ready_dr")
    assert made is not None
    assert made.findtext("uuid") != source_uuid
    assert [mac.get("address") for mac in made.iterfind("devices/interface/mac")] == [vm.mac]
    (listed,) = installation.json("replica", "list")
    assert (listed["domain_uuid"], listed["point"], listed["state"]) == (made.findtext("uuid"), first.point, "ready")
    replica = _on_beta(installation, "ready_dr")
    assert not replica.is_running()
    replica.undefine(delete_disks=False)
    second = replicate_off(installation, vm, "nightly")
    again = _definition(installation, "ready_dr")
    assert again is not None
    assert again.findtext("uuid") == made.findtext("uuid")
    assert_points_are(installation, "ready_dr", first, second)
    installation.ok("failover", "start", "ready_dr")
    assert run_in_replica(installation, "ready_dr", "echo up").strip() == "up"


def test_a_replica_that_is_used_by_hand_harms_no_point(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "touched")
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    vm.run("echo first >/data/state; sync")
    instants = [replicate_paused(installation, vm, "nightly")]
    directory = replica_directory(installation, "touched_replica")
    published = published_files(directory)
    replica = _on_beta(installation, "touched_replica")
    replica.start()
    run_in_replica(installation, "touched_replica", "echo by hand >/data/state; rm -r /data/boot; sync; fstrim /data")

    vm.run("echo second >/data/state; sync")
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert instants[-1].how()["vda"] == INCREMENTAL
    assert any("is running although no failover was started" in text for text in instants[-1].task["warnings"])
    assert replica.read_file("/data/state") == b"by hand\n"
    assert replica.is_running()
    assert installation.run("failover", "start", "touched_replica").status == 2

    replica.destroy()
    vm.run("echo third >/data/state; sync")
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert instants[-1].how()["vda"] == INCREMENTAL
    assert any("was started by hand" in text for text in instants[-1].task["warnings"])
    after = published_files(directory)
    assert {name: after[name] for name in published} == published
    assert_points_are(installation, "touched_replica", *instants)

    installation.ok("failover", "undo", "touched_replica")
    vm.run("echo fourth >/data/state; sync")
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert instants[-1].task["warnings"] == []
    installation.ok("failover", "start", "touched_replica")
    assert run_in_replica(installation, "touched_replica", "cat /data/state").strip() == "fourth"
    assert_points_are(installation, "touched_replica", *instants)


def test_failover_starts_any_point_and_undo_returns_to_exactly_the_published_points(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "lost")
    vm.wait_agent()
    installation.job("nightly", vm.name, options=("--points", "2", *QUIET))
    instants = []
    for state in ("first", "second"):
        vm.run(f"echo {state} >/data/state; sync")
        instants.append(replicate_paused(installation, vm, "nightly"))
    directory = replica_directory(installation, "lost_replica")
    published = published_files(directory)
    for instant, state in zip(instants, ("first", "second"), strict=True):
        started = installation.json("failover", "start", "lost_replica", "--point", instant.point)
        assert (started["state"], started["point"]) == ("failover", instant.point)
        assert run_in_replica(installation, "lost_replica", "cat /data/state").strip() == state
        run_in_replica(installation, "lost_replica", "echo changed >/data/state; dd if=/dev/urandom of=/data/more "
                       "bs=1M count=8; rm -r /data/boot; sync; fstrim /data")
        refused = installation.run("--json", "job", "run", "nightly")
        assert refused.status != 0
        assert "failover" in refused.json["tasks"][0]["error"]
        assert installation.run("failover", "start", "lost_replica").status == 2
        undone = installation.json("failover", "undo", "lost_replica")
        assert (undone["state"], undone["point"]) == ("ready", instants[-1].point)
        assert published_files(directory) == published
    assert installation.run("failover", "undo", "lost_replica").status == 2
    vm.run("echo third >/data/state; sync")
    instants.append(replicate_instant(installation, vm, "nightly"))
    assert instants[-1].how()["vda"] == INCREMENTAL
    assert instants[-1].task["warnings"] == []
    assert_points_are(installation, "lost_replica", *instants[-2:])


def test_another_controller_adopts_a_replica_and_continues_it_without_a_full_copy(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "orphaned")
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    instants = [replicate_paused(installation, vm, "nightly")]
    heir = Installation(lab, _place_beside(installation))
    heir.ok("datastore", "add", "found", "--host", "beta", "--path", str(installation.store))
    heir.ok("job", "create", "daily", "--source", "alpha", "--target", "beta", "--datastore", "found",
            "--vm", vm.name, *QUIET)
    refused = heir.run("--json", "job", "run", "daily")
    assert refused.status != 0
    assert "replica adopt found/orphaned_replica" in refused.json["tasks"][0]["error"]
    adopted = heir.json("replica", "adopt", "found/orphaned_replica")
    assert (adopted["points"], adopted["newest_point"]) == (1, instants[0].point)
    for state in ("second", "third"):
        vm.run(f"echo {state} >/data/state; sync")
        instants.append(replicate_instant(heir, vm, "daily"))
        assert instants[-1].how()["vda"] == INCREMENTAL
        assert instants[-1].disk("vda")["sent_bytes"] < 8 << 20
        assert len(our_checkpoints(vm)) == 1
    assert installation.run("job", "run", "nightly").status != 0
    assert_points_are(heir, "orphaned_replica", *instants)
    heir.ok("replica", "remove", "orphaned_replica", "--delete-files")
    assert [path.name for path in installation.store.iterdir()] == [".understudy-datastore"]
    assert _definition(heir, "orphaned_replica") is None
    assert heir.json("replica", "list") == []
    vm.run("echo fourth >/data/state; sync")
    instants.append(replicate_instant(heir, vm, "daily"))
    assert instants[-1].how()["vda"] == ("full", "first_run")
    assert_points_are(heir, "orphaned_replica", instants[-1])


def _place_beside(installation: Installation) -> Path:
    place = installation.place / "heir"
    place.mkdir()
    return place
