"""A job whose guest is processed by VMware Tools, by the command line: the guest is held, and the report says how."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.guests.component.private_guest import private_guest
from tests.vsphere import simulator
from tests.vsphere.front import front
from tests.vsphere.guest_operations import StandIn
from tests.vsphere.installing import Vsphere, installed
from tests.vsphere.library import kit
from tests.vsphere.library.kit import stand_in
from tests.vsphere.simulator import Inventory
from tests.vsphere.steps import SIZE, VM
from understudy.lab.hosts import LabHost

pytestmark = pytest.mark.timeout(1800)

PASSWORD = "a guest's pass word"
HOOK = b"#!/bin/sh\necho $1 >>/tmp/calls\n"


@pytest.fixture
def made() -> Iterator[Vsphere]:
    if reason := simulator.missing() or kit.missing():
        pytest.skip(reason)
    if os.geteuid():
        pytest.skip("needs root for a libvirt host of the lab, and for the stand-in for a guest")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="understudy-vt-")))
        place.chmod(0o755)
        for name in ("front", "home", "kit", "guest"):
            (place / name).mkdir()
        library = stack.enter_context(stand_in(kit.build(place / "kit"), place / "front"))
        vcenter = stack.enter_context(front(Inventory(vms=1), place / "front"))
        beta = stack.enter_context(LabHost("beta", place / "beta"))
        yield stack.enter_context(installed(vcenter, library, beta, place / "home"))


@pytest.fixture
def guest(made: Vsphere, tmp_path: Path) -> Iterator[StandIn]:
    """The guest of the VM: one file system on a loop device, and an application."""
    (tmp_path / "raw").write_bytes(random.Random(1).randbytes(SIZE))
    made.vcenter.place_disk(VM, tmp_path / "raw")
    (tmp_path / "guest").mkdir()
    with private_guest(tmp_path / "guest", ("dash",), b"") as machine:
        machine.sh("truncate -s 32M /tmp/image && mkfs.ext4 -q -F /tmp/image && mkdir /tmp/disk &&"
                   "mount -o loop /tmp/image /tmp/disk")  # fmt: skip
        machine.write("/etc/understudy/hooks.d/10-a", HOOK, 0o755)
        found = StandIn(machine, {"root": PASSWORD})
        made.vcenter.place_guest(VM, found)
        try:
            yield found
        finally:
            made.vcenter.guests.close()
            machine.sh("fsfreeze -u /tmp/disk 2>/dev/null; umount /tmp/disk")


def test_a_session_holds_the_guest_by_its_tools_and_without_a_password_tools_quiesce(
    made: Vsphere, guest: StandIn, tmp_path: Path
) -> None:
    script = tmp_path / "before"
    script.write_text("#!/bin/sh\necho before >>/tmp/calls\n")
    made.ok("credential", "add", "guest", "--user", "root", "--password-stdin", said=f"{PASSWORD}\n")
    made.job("nightly", VM, options=("--guest-processing", "require"))
    made.ok("job", "guest", "nightly", "--credential", "guest", "--freeze-deadline", "60", "--pre-freeze", str(script))
    (checked,) = made.ok("--json", "job", "check-guest", "nightly").json
    assert (checked["transport"], checked["can_freeze"]) == ("vmtools", True)
    assert [item["kind"] for item in checked["applications"]] == ["hooks"]

    task = made.replicate("nightly")
    assert (task["consistency"], task["guest"]["transport"]) == ("application", "vmtools")
    assert "file systems frozen" in [stage["name"] for stage in task["guest"]["stages"]]
    assert guest.machine.sh("cat /tmp/calls").split() == ["before", "freeze", "thaw", "commit"]
    assert guest.machine.sh("find /dev/shm /run/understudy-guest -name 'understudy*' -mindepth 1") == ""
    session = made.ok("session", "show", "1").out
    assert f"{VM}: guest by vmtools" in session

    guest.passwords["root"] = "changed"
    refused = made.run("--json", "job", "run", "nightly")
    assert refused.status == 1
    assert "the guest refuses user and password" in refused.out
    made.ok("job", "guest", "nightly", "--policy", "try")
    task = made.replicate("nightly")
    assert task["consistency"] == "filesystem"
    assert any("the platform is asked to quiesce it instead" in warning for warning in task["warnings"])
    logs = "".join(path.read_text(errors="replace") for path in made.home.rglob("*.log*") if path.is_file())
    assert PASSWORD not in logs + session + refused.out + refused.err
