"""Two independent hosts with real guests on one machine."""

from __future__ import annotations

import time
from pathlib import Path

import libvirt
import pytest

from understudy.lab.agent import run_in_guest
from understudy.lab.disks import DataDisk
from understudy.lab.errors import GuestCommandFailed, HypervisorFailed, LabError, LabTimeout
from understudy.lab.hosts import qemu_user
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm

pytestmark = pytest.mark.system


def test_guests_of_one_name_run_on_both_hosts_at_once(lab: Lab, source_vm: LabVm, target_vm: LabVm) -> None:
    for vm in (source_vm, target_vm):
        vm.wait_agent()
        vm.run(f"echo {vm.host.name} >/data/where && sync")
    assert [vm.read_file("/data/where") for vm in (source_vm, target_vm)] == [b"alpha\n", b"beta\n"]
    assert source_vm.pid() != target_vm.pid()


def test_hosts_have_names_and_networks_of_their_own(lab: Lab) -> None:
    names, networks = [], set()
    for host in lab.hosts:
        with host.connection() as connection:
            names.append(connection.getHostname())
        networks.add(Path(f"/proc/{host.namespaces.holder.pid}/ns/net").stat().st_ino)
    assert names == ["alpha", "beta"]
    assert len(networks | {Path("/proc/self/ns/net").stat().st_ino}) == 3


def test_qemu_runs_as_the_qemu_user_and_owns_the_disks(vm: LabVm) -> None:
    status = Path(f"/proc/{vm.pid()}/status").read_text()
    assert f"Uid:\t{qemu_user().pw_uid}\t" in status
    assert {disk.path.stat().st_uid for disk in vm.disks} == {qemu_user().pw_uid}


def test_the_guest_has_what_replication_touches(vm: LabVm) -> None:
    assert "/dev/vda1 /data ext4 rw" in vm.run("cat /proc/mounts")
    assert "/dev/vdc /mnt/vdc ext4 rw" in vm.run("cat /proc/mounts")
    assert "/dev/vda2" in vm.run("cat /proc/swaps")
    assert vm.mac in vm.run("ip link show eth0")
    vm.run("for tool in dd sync sha256sum md5sum blkdiscard fstrim mke2fs; do which $tool || exit 1; done")


def test_a_failing_command_tells_its_words_and_status(vm: LabVm) -> None:
    with pytest.raises(GuestCommandFailed, match="No such file") as caught:
        vm.run(["ls", "/nowhere"])
    assert caught.value.status == 1


def test_a_command_that_takes_too_long_is_reported(vm: LabVm) -> None:
    with pytest.raises(LabTimeout):
        vm.run("sleep 3", timeout_s=0.5)


def test_files_of_several_megabytes_go_in_and_out(vm: LabVm) -> None:
    content = bytes(range(256)) * 10_000
    vm.write_file("/data/big", content)
    assert vm.read_file("/data/big") == content


def test_a_missing_domain_is_a_lab_error(lab: Lab) -> None:
    with lab.beta.connection() as connection, pytest.raises(HypervisorFailed, match="nobody"):
        run_in_guest(connection, "nobody", "true")


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_guests_survive_the_end_of_libvirtd(vm: LabVm, how: str) -> None:
    process = vm.process()
    if how == "restart":
        vm.host.restart()
    else:
        vm.host.kill_libvirtd()
        vm.host.start_libvirtd()
    vm.wait_agent()
    assert vm.process() == process
    assert vm.run("echo here") == "here\n"


def test_a_guest_shuts_down_by_its_agent_and_by_its_power_button(lab: Lab) -> None:
    vm = lab.create_vm(lab.alpha, "short-lived", data_disks=[DataDisk(8 << 20)])
    vm.wait_agent()
    vm.run("echo kept >/data/kept")
    vm.shutdown()
    vm.start()
    vm.wait_agent()
    assert vm.read_file("/data/kept") == b"kept\n"
    # Who hears the button starts at the same time as the agent, and writes this when it listens.
    vm.run("until [ -s /run/acpid.pid ]; do usleep 20000; done")
    with vm.domain() as domain:
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    vm.wait_off()
    vm.undefine()
    assert not vm.disks[0].path.exists()


def test_a_guest_is_up_within_seconds(lab: Lab) -> None:
    started = time.monotonic()
    vm = lab.create_vm(lab.beta, "quick")
    vm.wait_agent()
    print(f"start to agent: {time.monotonic() - started:.1f} s")
    vm.destroy()
    vm.undefine()


def test_a_name_whose_disks_are_still_there_is_refused_by_that_name(lab: Lab) -> None:
    first = LabVm.create(lab.beta, "taken", lab.guest)
    first.undefine(delete_disks=False)
    with pytest.raises(LabError, match="has, or had, a VM 'taken'"):
        LabVm.create(lab.beta, "taken", lab.guest)
    assert first.disks[0].path.exists()
