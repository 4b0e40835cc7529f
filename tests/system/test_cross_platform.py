"""A VM of vSphere whose replica starts on a KVM host: its bytes as they were, its devices such as its guest knows."""

from __future__ import annotations

import subprocess
from xml.etree import ElementTree as ET

from tests.system.foreign import MAC, REPLICA, hardware, publish
from tests.system.installation import Installation
from tests.system.steps import published_files, replica_directory
from understudy.lab import agent
from understudy.platforms.vsphere.definition import DiskController


def test_a_guest_of_vsphere_boots_on_kvm_without_a_conversion_and_undo_drops_what_it_wrote(
        installation: Installation) -> None:
    lab, data = installation.lab, installation.place / "data.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", data, "8M"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 0x55 1M 64k", data], check=True)
    vm = hardware([("scsi0:0", DiskController.PVSCSI, lab.guest.image), ("scsi0:1", DiskController.PVSCSI, data)])
    publish(installation, vm, [lab.guest.image, data])
    installation.ok("replica", "adopt", f"ds/{REPLICA}")
    installation.ok("replica", "verify", REPLICA)
    before = published_files(replica_directory(installation, REPLICA))

    started = installation.json("failover", "start", REPLICA, "--convert", "never")
    assert started["note"].startswith("the guest was not converted")
    assert f"network card {MAC}: the target host has no network 'VM Network'" in " ".join(started["warnings"])
    with lab.beta.connection() as beta:
        agent.wait_agent(beta, REPLICA, 120)

        def run(script: str) -> str:
            return agent.run_in_guest(beta, REPLICA, ["/bin/sh", "-c", script])

        # Both disks are there by their own driver, each in its place, and hold what they held.
        assert run("ls /sys/bus/pci/drivers/vmw_pvscsi | grep -c :").strip() == "1"
        assert run("ls /sys/block | grep -c '^vd'; true").strip() == "0"
        assert run("grep -c /data /proc/mounts").strip() == "1"
        second = run("ls /sys/bus/scsi/devices/*:0:1:0/block").strip()
        assert run(f"dd if=/dev/{second} bs=64k skip=16 count=1 2>/dev/null | tr -d U | wc -c").strip() == "0"
        # It knows itself by the UUID and the address that it always had.
        assert run("cat /sys/class/dmi/id/product_uuid").strip() == "a23c4d56-019f-221b-8f2f-6a0a5f1e2d3c"
        assert run("cat /sys/class/net/eth0/address").strip() == MAC
        assert run("basename $(readlink /sys/class/net/eth0/device/driver)").strip() == "vmxnet3"
        run("echo made in failover > /data/change; sync")
        agent.write_guest_file(beta, REPLICA, "/data/more", b"x")
    shown = installation.json("replica", "show", REPLICA)
    assert (shown["state"], shown["head_empty"], shown["conversion"]) == ("failover", False, "none")

    installation.ok("failover", "undo", REPLICA)
    assert published_files(replica_directory(installation, REPLICA)) == before
    assert installation.json("replica", "show", REPLICA)["head_empty"]
    installation.ok("replica", "verify", REPLICA)


def test_disks_of_which_qemu_has_no_controller_are_found_on_sata_more_than_one_controller_of_it(
        installation: Installation) -> None:
    """The boot loader is in the firmware's hands then, and all eight disks are there."""
    lab, small = installation.lab, installation.place / "small.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", small, "1M"], check=True)
    images = [lab.guest.image, *[small] * 7]
    vm = hardware([(f"scsi0:{unit}", DiskController.LSI_LOGIC, image) for unit, image in enumerate(images)])
    publish(installation, vm, images)
    installation.ok("replica", "adopt", f"ds/{REPLICA}")
    installation.ok("failover", "start", REPLICA, "--convert", "never")
    with lab.beta.connection() as beta:
        root = ET.fromstring(beta.lookupByName(REPLICA).XMLDesc())
        assert len(root.findall("devices/disk/target[@bus='sata']")) == 8
        assert len(root.findall("devices/controller[@type='sata']")) == 2
        # This kernel is built without AHCI, but the firmware has loaded it, with all that it does without a disk.
        agent.wait_agent(beta, REPLICA, 120)
    installation.ok("failover", "undo", REPLICA)


def test_where_a_conversion_is_wished_and_cannot_be_done_the_replica_is_ready_again(
        installation: Installation) -> None:
    lab = installation.lab
    vm = hardware([("scsi0:0", DiskController.PVSCSI, lab.guest.image)])
    publish(installation, vm, [lab.guest.image])
    installation.ok("replica", "adopt", f"ds/{REPLICA}")
    before = published_files(replica_directory(installation, REPLICA))
    program = installation.place / "bin" / "virt-v2v-in-place"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'virt-v2v-in-place: error: no root device'; exit 1\n")
    program.chmod(0o755)
    env = {"PATH": f"{program.parent}:/usr/sbin:/usr/bin:/sbin:/bin"}
    refused = installation.run("failover", "start", REPLICA, "--convert", "always", env=env)
    assert (refused.status, "virt-v2v-in-place failed: no root device" in refused.err) == (1, True), refused
    shown = installation.json("replica", "show", REPLICA)
    assert (shown["state"], shown["head_empty"], shown["conversion"]) == ("ready", True, "none")
    # Where it is only tried, the guest starts as it is.
    started = installation.run("--json", "failover", "start", REPLICA, env=env)
    assert started.status == 0, started
    assert started.json["note"].startswith("the guest was not converted")
    assert "no root device" in started.json["note"]
    with lab.beta.connection() as beta:
        agent.wait_agent(beta, REPLICA, 120)
    installation.ok("failover", "undo", REPLICA)
    assert published_files(replica_directory(installation, REPLICA)) == before
