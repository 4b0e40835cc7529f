"""virt-v2v itself on the head of a replica: a guest that knows VMware's devices only runs on virtio devices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proof.virt_v2v import MEMORY_MIB, build_guest_of_vsphere, make_program
from tests.system.aftermath import remove_vms
from tests.system.commands import Answer
from tests.system.foreign import REPLICA, hardware, publish
from tests.system.installation import Installation
from tests.system.steps import published_files, replica_directory
from understudy.lab import agent
from understudy.lab.lab import DEFAULT_CACHE, Lab
from understudy.platforms.vsphere.definition import DiskController
from understudy.units import MIB

_CONVERSION_LIMIT_S = 3000
_BOOT_LIMIT_S = 400


@pytest.fixture
def installation(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Installation]:
    """A home and a datastore, and no VMs afterwards."""
    place = lab.directory / f"conversion-{abs(hash(request.node.nodeid)):x}"
    place.mkdir()
    try:
        yield Installation(lab, place)
    finally:
        remove_vms(lab)


def start(installation: Installation, programs: Path) -> Answer:
    """Start the failover with a conversion in any case, by the program below ``programs``."""
    done = subprocess.run(
        installation.command("--json", "failover", "start", REPLICA, "--convert", "always"), capture_output=True,
        text=True, timeout=_CONVERSION_LIMIT_S, check=False,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.timeout(2 * _CONVERSION_LIMIT_S)
def test_a_guest_without_any_virtio_driver_in_its_initramfs_runs_on_virtio_and_undo_takes_it_back(
        installation: Installation) -> None:
    programs = make_program(DEFAULT_CACHE, installation.place / "bin")
    image, second = build_guest_of_vsphere(DEFAULT_CACHE), installation.place / "second.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", second, "8M"], check=True)
    vm = hardware([("scsi0:0", DiskController.PVSCSI, image), ("scsi0:1", DiskController.PVSCSI, second)],
                  MEMORY_MIB * MIB)
    publish(installation, vm, [image, second])
    installation.ok("replica", "adopt", f"ds/{REPLICA}")
    before = published_files(replica_directory(installation, REPLICA))

    answer = start(installation, programs)
    assert answer.status == 0, answer
    assert answer.json["note"].startswith("the guest was converted")
    assert installation.json("replica", "show", REPLICA)["conversion"] == "virtio"
    assert in_guest(installation, "ls /sys/block | grep -E '^(sd|vd)' | tr '\\n' ' '") == "vda vdb "
    assert in_guest(installation, "findmnt -n -o SOURCE /") == "/dev/vda1\n"
    assert in_guest(installation, "cat /srv/content") == "the content\n"
    assert in_guest(installation, "ls /sys/bus/virtio/drivers/virtio_net | grep -c ^virtio") == "1\n"

    installation.ok("failover", "undo", REPLICA)
    assert installation.json("replica", "show", REPLICA)["conversion"] == "none"
    assert published_files(replica_directory(installation, REPLICA)) == before
    installation.ok("replica", "verify", REPLICA)
    # The guest is again what it was: it starts from the controller that it knows.
    installation.ok("failover", "start", REPLICA, "--convert", "never")
    assert in_guest(installation, "findmnt -n -o SOURCE /") == "/dev/sda1\n"
    installation.ok("failover", "undo", REPLICA)
    assert published_files(replica_directory(installation, REPLICA)) == before


@pytest.mark.timeout(_CONVERSION_LIMIT_S)
def test_what_virt_v2v_refuses_is_told_and_the_replica_is_ready_again(installation: Installation) -> None:
    programs = make_program(DEFAULT_CACHE, installation.place / "bin")
    empty = installation.place / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", empty, "64M"], check=True)
    publish(installation, hardware([("scsi0:0", DiskController.PVSCSI, empty)]), [empty])
    installation.ok("replica", "adopt", f"ds/{REPLICA}")
    answer = start(installation, programs)
    assert answer.status == 1, answer
    assert "virt-v2v-in-place failed: inspection could not detect the source guest" in answer.err
    shown = installation.json("replica", "show", REPLICA)
    assert (shown["state"], shown["head_empty"], shown["conversion"]) == ("ready", True, "none")


def in_guest(installation: Installation, script: str) -> str:
    """What a script says in the replica's guest."""
    with installation.lab.beta.connection() as beta:
        agent.wait_agent(beta, REPLICA, _BOOT_LIMIT_S)
        return agent.run_in_guest(beta, REPLICA, script, 120)
