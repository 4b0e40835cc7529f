"""A VM that is renamed, defined again, or moved to another host of its job stays the same VM to its replica."""

from __future__ import annotations

import re

import libvirt

from tests.system.installation import Installation
from tests.system.steps import INCREMENTAL, MIB, QUIET, assert_points_are, replicate_paused
from understudy.lab.disks import DataDisk
from understudy.lab.hosts import LabHost
from understudy.lab.vm import LabVm

SCAN = ("digest_scan", "checkpoint_missing")


def take_away(vm: LabVm) -> str:
    """Power the VM off and undefine it; its definition. The disks, with our bitmaps in them, stay."""
    if vm.is_running():
        vm.destroy()
    with vm.domain() as domain:
        definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    vm.undefine(delete_disks=False)
    assert isinstance(definition, str)
    return definition


def bring(vm: LabVm, host: LabHost, name: str, definition: str, *, start: bool = True) -> LabVm:
    """Define the VM with the same UUID on a host, under a name."""
    named = re.sub(r"<name>.*?</name>", f"<name>{name}</name>", definition, count=1)
    with host.connection() as connection:
        connection.defineXML(named)
    found = LabVm(host, name, vm.disks, vm.mac)
    if start:
        found.start()
        found.wait_agent()
    return found


def _write(vm: LabVm, number: int) -> None:
    vm.run(f"dd if=/dev/urandom of=/dev/vdb bs=64k count=1 seek={number} oflag=direct conv=notrunc 2>/dev/null;"
           f"echo {number} >/data/number; sync")


def test_a_vm_that_is_renamed_or_moved_goes_on_in_its_replica(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "shop", data_disks=[DataDisk(8 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=("--source", "beta", *QUIET))
    instants = [replicate_paused(installation, vm, "nightly")]

    definition = take_away(vm)
    vm = bring(vm, lab.alpha, "store", definition)
    _write(vm, 1)
    instants.append(replicate_paused(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {SCAN}
    assert "VM 'shop' is called 'store' now; job and replica keep its old name" in instants[-1].task["warnings"]
    assert instants[-1].disk("vdb")["sent_bytes"] == MIB // 16

    # A new VM takes the old name: it is somebody else.
    other = bring(vm, lab.alpha, "shop", re.sub(r"<uuid>.*?</uuid>", "", definition, count=1), start=False)
    _write(vm, 2)
    instants.append(replicate_paused(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {INCREMENTAL}
    assert not [warning for warning in instants[-1].task["warnings"] if "is called" in warning]
    take_away(other)

    definition = take_away(vm)
    vm = bring(vm, lab.beta, "store", definition)
    bring(vm, lab.alpha, "store", definition, start=False)  # what a migration may leave behind
    for number, how in ((3, SCAN), (4, INCREMENTAL)):
        _write(vm, number)
        instants.append(replicate_paused(installation, vm, "nightly"))
        assert set(instants[-1].how().values()) == {how}
    assert_points_are(installation, "shop_replica", *instants)

    vm.destroy()
    refused = installation.run("job", "run", "nightly")
    assert refused.status == 1
    assert "hosts alpha and beta have it, and it runs on none of them" in refused.err
