"""A guest is thawed within the deadline whatever goes wrong in it, and the session says what happened.

Four guests, each with a fault of its own, are processed at the same time: first by a job that tries, then by one that
requires. In each a process writes to the disk all the time and notes when; no write may have waited for longer than the
deadline and what a watchdog takes. The one that is reset has to write afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from tests.system.conftest import installation_in
from tests.system.installation import Installation
from tests.system.steps import freeze_status, wait_until
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm

#: Twice the ordinary time: of four guests on a busy machine, one must be seen while it is frozen.
DEADLINE_S = 20
SLACK_S = 2.5
SCRIPT_LIMIT_S = 2

# In place, so that it goes on when the disk is full. The notes are in memory.
_BEAT = """
dd if=/dev/zero of=/data/beat bs=4k count=1 conv=fsync 2>/dev/null
setsid sh -c 'while :; do
    dd if=/dev/urandom of=/data/beat bs=512 count=1 conv=notrunc,fsync 2>/dev/null || echo failed >>/run/beats
    cut -d" " -f1 /proc/uptime >>/run/beats
    usleep 100000
done' </dev/null >/dev/null 2>&1 &
"""
# The agent calls it before it freezes; it does something only after `touch /run/armed`.
_HOOK = """#!/bin/sh
[ $1 = freeze ] && [ -e /run/armed ] || exit 0
rm /run/armed
"""
# The agent has the command, and will obey it as soon as it goes on.
_STOPPED_WHILE_IT_FREEZES = "kill -STOP $(pidof qemu-ga)\n"
# The agent has answered that all is frozen, and never thaws.
_STOPPED_WHEN_FROZEN = """setsid sh -c 'until [ -e /run/qga.state.isfrozen ]; do usleep 50000; done
sleep 2; kill -STOP $(pidof qemu-ga)' </dev/null >/dev/null 2>&1 &
"""
# While its agent stands still, a guest hears of its power button only.
_BUTTON = """#!/bin/sh
cut -d" " -f1 /proc/uptime >>/run/continued
kill -CONT $(pidof qemu-ga)
"""
_HANGING = "sleep 611 &\nsleep 612\n"

FREEZING, FROZEN, RESET, FULL = "stuck-freezing", "stuck-frozen", "reset-frozen", "full-frozen"


@dataclass
class Story:
    """What came of it: the tasks by policy and VM."""

    installation: Installation
    vms: dict[str, LabVm]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)

    def run(self, policy: str) -> None:
        """Process all guests at the same time, while something goes wrong in each."""
        stopped = [self.vms[name] for name in (FREEZING, FROZEN)]
        for vm in stopped:
            vm.run("touch /run/armed")
        with self.installation.stalled(policy, "snapshot.before") as run:
            wait_until(lambda: freeze_status(self.vms[RESET]) == "frozen", 60, "the guest is frozen")
            with self.vms[RESET].domain() as domain:
                domain.reset(0)
            wait_until(lambda: not any(_answers(vm) for vm in stopped), 30, "the agents stopped")
        self.statuses[policy] = run.ended.status
        self.tasks[policy] = {task["vm"]: task for task in run.ended.json["tasks"]}
        for vm in stopped:
            with vm.domain() as domain:
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        wait_until(lambda: all(_answers(vm) for vm in stopped), 30, "the agents go on")
        wait_until(lambda: all(freeze_status(vm) == "thawed" for vm in stopped), 30, "the guests are thawed")
        # An agent that comes back during a backup job of more than 30 s is missed by libvirt 9.0, until it starts anew.
        self.installation.lab.alpha.restart()
        self.vms[RESET].wait_agent()
        for vm in self.vms.values():
            vm.run("dd if=/dev/zero of=/data/proof bs=512 count=1 conv=notrunc,fsync", timeout_s=10)


def _answers(vm: LabVm) -> bool:
    with vm.domain() as domain:
        try:
            libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', 1, 0)
        except libvirt.libvirtError:
            return False
        return True


@pytest.fixture(scope="module")
def story(lab: Lab) -> Iterator[Story]:
    with installation_in(lab, "guest-faults") as installation:
        vms = {name: lab.create_vm(lab.alpha, name) for name in (FREEZING, FROZEN, RESET, FULL)}
        for vm in vms.values():
            vm.wait_agent()
            vm.run("dd if=/dev/zero of=/data/proof bs=512 count=1 conv=fsync; sync")
            vm.run(_BEAT)
        for name, fault in ((FREEZING, _STOPPED_WHILE_IT_FREEZES), (FROZEN, _STOPPED_WHEN_FROZEN)):
            vms[name].write_file("/data/fsfreeze-hook", (_HOOK + fault).encode())
            vms[name].write_file("/etc/acpi/PWRF/00000080", _BUTTON.encode())
            vms[name].run("chmod +x /data/fsfreeze-hook; sync")
        vms[FULL].run("dd if=/dev/zero of=/data/full bs=64k 2>/dev/null; dd if=/dev/zero of=/data/rest bs=512; sync")
        for proxy in installation.json("proxy", "list"):
            installation.ok("proxy", "set", proxy["name"], "--slots", "8")
        script = installation.place / "hangs.sh"
        script.write_text(_HANGING)
        for policy in ("try", "require"):
            installation.job(policy, *vms, options=("--guest-processing", policy, "--suffix", f"_{policy}"))
            installation.ok("job", "guest", policy, "--freeze-deadline", str(DEADLINE_S))
            installation.ok("job", "guest", policy, "--vm", FULL, "--pre-freeze", str(script),
                            "--script-timeout", str(SCRIPT_LIMIT_S))  # fmt: skip
        story = Story(installation, vms)
        story.run("try")
        story.run("require")
        yield story


@pytest.mark.parametrize("name", [FREEZING, FROZEN, FULL])
def test_no_write_waits_for_longer_than_the_deadline(story: Story, name: str) -> None:
    beats = [float(line) for line in story.vms[name].run("cat /run/beats").split()]
    assert max(later - earlier for earlier, later in pairwise(beats)) < DEADLINE_S + SLACK_S


def test_a_guest_whose_agent_never_thaws_is_thawed_by_the_program_in_it(story: Story) -> None:
    vm = story.vms[FROZEN]
    beats = [float(line) for line in vm.run("cat /run/beats").split()]
    thawed = [later for earlier, later in pairwise(beats) if later - earlier > 5]
    continued = [float(line) for line in vm.run("cat /run/continued").split()]
    assert len(thawed) == len(continued) == 2
    # The agent stood still until then, so that nobody outside the guest can have thawed it.
    assert all(before < after for before, after in zip(thawed, continued, strict=True))


TOLD = {
    FREEZING: (f"freeze VM '{FREEZING}'", "crash"),
    FROZEN: ("it could not be thawed in order", "crash"),
    RESET: ("freeze", "crash"),
    FULL: (f"killed after {SCRIPT_LIMIT_S} s", "filesystem"),
}


@pytest.mark.parametrize("name", [FREEZING, FROZEN, RESET, FULL])
def test_a_job_that_tries_makes_a_point_and_warns(story: Story, name: str) -> None:
    task = story.tasks["try"][name]
    why, consistency = TOLD[name]
    assert story.statuses["try"] == 0
    assert (task["state"], task["consistency"]) == ("warning", consistency), task
    assert any(why in warning for warning in task["warnings"]), task["warnings"]


@pytest.mark.parametrize("name", [FREEZING, FROZEN, RESET, FULL])
def test_a_job_that_requires_makes_none_and_says_why(story: Story, name: str) -> None:
    task = story.tasks["require"][name]
    assert story.statuses["require"] == 1
    assert (task["state"], task["restore_point"]) == ("failed", None)
    assert TOLD[name][0] in task["error"]


def test_a_script_that_hangs_ended_with_what_it_had_started(story: Story) -> None:
    assert story.vms[FULL].run("pgrep -f '^sleep 61[12]' || :") == ""


def test_the_next_session_of_each_job_leaves_nothing_of_all_this_in_the_guests(story: Story) -> None:
    installation, vms = story.installation, story.vms
    for policy in ("try", "require"):
        installation.ok("job", "guest", policy, "--vm", FULL, "--reset")
        installation.ok("job", "guest", policy, "--freeze-deadline", "60")
    assert {task["consistency"] for task in installation.replicate("require")["tasks"]} == {"filesystem"}
    vms[RESET].run("mkdir -p /run/understudy-guest; mount -t tmpfs -o size=8k,mode=700 none /run/understudy-guest")
    tasks = {task["vm"]: task for task in installation.replicate("try")["tasks"]}
    assert {name: task["consistency"] for name, task in tasks.items()} == dict.fromkeys(vms, "filesystem")
    # Where there is no room for the program, its session says who alone watches.
    (warning,) = tasks[RESET]["warnings"]
    assert "only the watchdog on the host's side" in warning
    assert (tasks[FULL]["state"], tasks[FULL]["warnings"]) == ("success", [])
    for vm in vms.values():
        assert freeze_status(vm) == "thawed"
        assert vm.run("find /run/understudy-guest -mindepth 1; pgrep -f understudy || :") == ""
