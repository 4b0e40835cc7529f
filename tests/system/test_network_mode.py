"""Network mode: a host without a proxy, whose emulator serves the disks to a proxy elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.system.installation import Installation
from tests.system.relay import LOOPBACK, relayed
from tests.system.steps import INCREMENTAL, QUIET, assert_points_are, replicate_instant
from understudy.lab.hosts import qemu_user
from understudy.lab.lab import Lab
from understudy.platforms.libvirt.backup import PORTS


@pytest.fixture
def far(installation: Installation) -> Iterator[Installation]:
    """An installation with the proxy ``far`` on beta, which reaches ports of alpha only."""
    alpha = installation.lab.alpha
    pki = alpha.directory / "etc" / "pki"
    installation.ok("host", "set", "alpha", "--nbd-address", LOOPBACK)
    installation.ok("host", "certificate", "alpha", "--directory", str(pki))
    user = qemu_user()
    for path in pki.iterdir():
        os.chown(path, user.pw_uid, user.pw_gid)
    installation.ok("proxy", "add", "far", "--host", "beta")
    with relayed(alpha, PORTS):
        yield installation
    for path in pki.iterdir():
        path.unlink()


def test_a_running_vm_is_read_over_the_network_first_in_full_then_what_changed(far: Installation) -> None:
    vm = far.lab.create_vm(far.lab.alpha, "remote")
    vm.wait_agent()
    far.job("nightly", vm.name, options=(*QUIET, "--source-proxy", "far"))
    first = replicate_instant(far, vm, "nightly", meanwhile="dd if=/dev/urandom of=/data/late bs=64k count=20; sync")
    vm.run("dd if=/dev/urandom of=/data/noise bs=64k count=40; sync")
    second = replicate_instant(far, vm, "nightly", meanwhile="rm /data/noise; sync")
    assert first.disk("vda")["mode"] == "full"
    assert second.how() == {"vda": INCREMENTAL}
    assert second.disk("vda")["read_bytes"] < first.disk("vda")["read_bytes"]
    assert_points_are(far, "remote_replica", first, second)
    assert_nothing_is_left(far.lab, vm.name)
    assert not far.scratch.exists()  # nobody prepared files on alpha


def assert_nothing_is_left(lab: Lab, name: str) -> None:
    """Beside the disks of the VM is nothing that was not there before."""
    (images,) = lab.directory.glob(f"alpha/images/{name}")
    assert [path.name for path in images.iterdir()] == ["vda.qcow2"]


def test_a_vm_that_is_off_is_refused_with_what_to_do(far: Installation) -> None:
    vm = far.lab.create_vm(far.lab.alpha, "off")
    far.job("nightly", vm.name, options=(*QUIET, "--source-proxy", "far"))
    with vm.domain() as domain:
        domain.destroy()
    answer = far.run("--json", "job", "run", "nightly")
    (task,) = answer.json["tasks"]
    assert answer.status == 1
    assert "the VM is powered off; enrol a proxy on host alpha" in task["error"]
