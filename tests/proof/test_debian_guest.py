"""A real Debian with PostgreSQL under load: each point is application-consistent, boots, and is what its label says.

No part of `make test`: emulated, PostgreSQL needs most of a core to come to rest within the deadline of a freeze.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest

from tests.proof.database import ACCOUNTS, BALANCE, MARK, MARKS, Proof, position, prove, start_bank
from tests.system.aftermath import remove_vms
from tests.system.installation import Installation
from tests.system.steps import run_in_replica
from understudy.lab.commands import run
from understudy.lab.debian import MEMORY_MIB, SWAP_UUID, build_debian
from understudy.lab.debian_tree import ADMIN, CLUSTER
from understudy.lab.guest import GuestFiles
from understudy.lab.lab import DEFAULT_CACHE, Lab
from understudy.lab.libvirt_calls import libvirt_calls
from understudy.lab.vm import LabVm

RUNS = 5
SSH_PORT = 2222
_HMP = 1  # VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
_BOOT_LIMIT_S = 240
_TRIES = 4
_NOT_IN_TIME = ("it did not end within", "in time", "was not kept frozen for certain", "thawed by itself", "no time")


#: systemd gives up on a device of fstab after so long.
_WAITED_FOR_DEVICES_US = 90_000_000
#: Its state, its swap, how many devices it waited for in vain, and when it had started, in microseconds.
_STARTED = """
systemctl is-system-running --wait
swapon --show=UUID --noheadings
journalctl -b -t systemd | grep -c 'Timed out waiting'
systemctl show -P ActiveEnterTimestampMonotonic multi-user.target
"""


@dataclass(frozen=True)
class Mark:
    """What was acknowledged last when a script of the job ran, and when that was by the guest's clock."""

    number: int
    time: int


@dataclass(frozen=True)
class Bank:
    """The guest and its job, with a point for each run; the last run reached the guest by SSH."""

    installation: Installation
    vm: LabVm
    guest: GuestFiles
    tasks: tuple[Any, ...]
    before: tuple[Mark, ...]
    after: tuple[Mark, ...]

    @property
    def replica(self) -> str:
        return f"{self.vm.name}_replica"

    def labels(self) -> list[str]:
        """The backup label that each session tells."""
        return [str(item["label"]) for task in self.tasks for item in task["guest"]["applications"]]


@pytest.fixture(scope="module")
def bank(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    """Five runs of a job on a guest whose database never rests."""
    place = lab.directory / "debian"
    place.mkdir()
    installation = Installation(lab, place)
    guest = build_debian(DEFAULT_CACHE)
    vm = LabVm.create(lab.alpha, "bank", guest, memory_mib=MEMORY_MIB)
    vm.start()
    try:
        vm.wait_agent(_BOOT_LIMIT_S)
        vm.run("systemctl is-system-running --wait", _BOOT_LIMIT_S)
        start_bank(vm)
        scripts = [word for option, when in (("--pre-freeze", "before"), ("--post-thaw", "after"))
                   for word in (option, str(_script(place, when)))]  # fmt: skip
        installation.job("nightly", vm.name, options=("--guest-processing", "require"))
        installation.ok("job", "guest", "nightly", *scripts)
        tasks = [_replicate(installation, vm) for _ in range(RUNS - 1)]
        _reach_by_ssh(installation, vm)
        tasks.append(_replicate(installation, vm))
        marks = [line.split() for line in vm.run(f"cat {MARKS}").splitlines()]
        before, after = ([Mark(int(number), int(time)) for name, number, time in marks if name == when]
                         for when in ("before", "after"))  # fmt: skip
        yield Bank(installation, vm, guest, tuple(tasks), tuple(before), tuple(after))
    finally:
        remove_vms(lab)


def _script(place: Path, when: str) -> Path:
    path = place / when
    path.write_text(MARK.replace("@WHEN@", when))
    return path


def _replicate(installation: Installation, vm: LabVm) -> Any:
    """A run that makes a point; its task.

    Emulated, PostgreSQL does not always come to rest in the few seconds that it has. A session that gives it up makes
    no point and says why, and another one is begun; what its scripts noted is forgotten.
    """
    replica = installation.store / f"{vm.name}_replica" / "points"
    for _ in range(_TRIES):
        marks, points = vm.run(f"touch {MARKS}; cat {MARKS}"), _names(replica)
        told = on_alpha(installation, "--json", "job", "run", "nightly")
        (task,) = json.loads(told)["tasks"]
        if task["restore_point"]:
            return task
        assert any(reason in task["error"] for reason in _NOT_IN_TIME), task["error"]
        assert _names(replica) == points
        vm.write_file(MARKS, marks.encode())
    raise AssertionError(task)


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def _reach_by_ssh(installation: Installation, vm: LabVm) -> None:
    """From now on the guest is reached over the network of alpha, with a key; no host key is taken unseen."""
    key = installation.place / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    vm.write_file("/run/key.pub", key.with_name("key.pub").read_bytes())
    vm.run(f"install -o {ADMIN} -m 600 /run/key.pub /home/{ADMIN}/.ssh/authorized_keys")
    with vm.domain() as domain, libvirt_calls("reach the guest's SSH port"):
        libvirt_qemu.qemuMonitorCommand(domain, f"hostfwd_add hostnet0 tcp:127.0.0.1:{SSH_PORT}-:22", _HMP)
    installation.ok("credential", "add", "admin", "--user", ADMIN, "--key", str(key))
    installation.ok("job", "guest", "nightly", "--vm", vm.name, "--transport", "ssh", "--credential", "admin",
                    "--address", f"127.0.0.1:{SSH_PORT}")  # fmt: skip
    assert "is not known" in on_alpha(installation, "job", "run", "nightly")
    assert "SHA256:" in on_alpha(installation, "job", "check-guest", "nightly", "--accept-host-key")


def on_alpha(installation: Installation, *arguments: str) -> str:
    """What a command says on the host of the guest, from which alone its SSH server can be reached."""
    options = installation.lab.alpha.namespaces.enter_options()
    command = ["nsenter", *options, "--", *installation.command(*arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    return done.stdout or done.stderr


def test_every_point_is_application_consistent_and_keeps_the_label_of_the_database(bank: Bank) -> None:
    points = bank.installation.points(bank.replica)
    assert [task["restore_point"] for task in bank.tasks] == [point["id"] for point in points]
    assert [point["consistency"] for point in points] == ["application"] * RUNS
    for task in bank.tasks:
        assert (task["state"], task["warnings"]) == ("success", [])
        (database,) = task["guest"]["applications"]
        assert (database["kind"], database["name"], database["state"]) == ("postgresql", CLUSTER, "quiesced")
        assert database["label"].startswith("START WAL LOCATION: ")
        assert 0 < task["frozen_ms"] < 10_000
    assert [task["guest"]["transport"] for task in bank.tasks] == ["qga"] * (RUNS - 1) + ["ssh"]


def test_each_point_boots_and_its_database_recovers_by_itself_to_what_its_label_says(
    bank: Bank, tmp_path: Path
) -> None:
    images = [str(point["disks"][0]["image"]) for point in bank.installation.points(bank.replica)]
    with ThreadPoolExecutor(2) as pool:
        proofs = list(pool.map(prove, images, [tmp_path / str(number) for number in range(RUNS)]))
    for proof, label, before, after in zip(proofs, bank.labels(), bank.before, bank.after, strict=True):
        _assert_is(proof, label, before, after)
    assert [proof.highest for proof in proofs] == sorted({proof.highest for proof in proofs})


def _assert_is(proof: Proof, label: str, before: Mark, after: Mark) -> None:
    """The database is that of the label's backup: no transfer that was acknowledged is missing, or half there."""
    told = dict(line.split(": ", 1) for line in label.splitlines() if ": " in line)
    assert proof.state == "in production"
    assert proof.checkpoint == told["CHECKPOINT LOCATION"]
    assert proof.redo == told["START WAL LOCATION"].split()[0]
    assert position(proof.recovered) >= position(proof.checkpoint)
    assert proof.total == ACCOUNTS * BALANCE
    assert proof.highest == proof.numbers
    assert before.number <= proof.highest <= after.number + 1
    assert proof.amcheck.split()[0] == "0", proof.amcheck


def test_swap_is_left_out_and_a_replica_starts_with_it_at_once(bank: Bank) -> None:
    installation, guest = bank.installation, bank.guest
    assert {task["disks"][0]["excluded"]["swap"] for task in bank.tasks} == {guest.swap_size - (64 << 10)}
    assert bank.tasks[0]["disks"][0]["sent_bytes"] < _held(guest.image) - guest.swap_size + (32 << 20)
    installation.ok("failover", "start", bank.replica)
    said = run_in_replica(installation, bank.replica, _STARTED).split()
    installation.ok("failover", "undo", bank.replica)
    assert said[:3] == ["running", SWAP_UUID, "0"]
    # A device that does not come is waited for longer than this.
    assert 0 < int(said[3]) < _WAITED_FOR_DEVICES_US, said


def _held(image: Path) -> int:
    return image.stat().st_blocks * 512


def test_a_guest_that_shows_another_host_key_is_not_talked_to(bank: Bank) -> None:
    points = bank.installation.points(bank.replica)
    bank.vm.run("ssh-keygen -q -t ed25519 -N '' -f /run/other; sed -i '1i HostKey /run/other' /etc/ssh/sshd_config; "
                "systemctl restart ssh")  # fmt: skip
    assert "is not the one that was accepted" in on_alpha(bank.installation, "job", "run", "nightly")
    assert bank.installation.points(bank.replica) == points
