"""The shipped program works in a real guest: hooks are quiesced, the check tells of them, nothing stays there."""

from __future__ import annotations

from tests.system.installation import Installation
from tests.system.steps import freeze_status
from understudy.guests.program import AGENT_PATH

_HOOK = """#!/bin/sh
echo $1 >>/run/calls
"""


def test_hooks_are_called_around_the_snapshot_by_the_copied_and_by_the_installed_program(
    installation: Installation,
) -> None:
    vm = installation.lab.create_vm(installation.lab.alpha, "hooked")
    vm.wait_agent()
    vm.run("mkdir -p /etc/understudy/hooks.d")
    vm.write_file("/etc/understudy/hooks.d/10-note", _HOOK.encode())
    vm.run("chmod 755 /etc/understudy/hooks.d/10-note")
    installation.job("nightly", vm.name, options=("--guest-processing", "require"))

    (checked,) = installation.json("job", "check-guest", "nightly")
    assert (checked["transport"], checked["problems"]) == ("qga", {})
    assert (checked["component"], checked["can_freeze"]) == ("runtime", True)
    assert [item["kind"] for item in checked["applications"]] == ["hooks"]

    (task,) = installation.replicate("nightly")["tasks"]
    assert (task["consistency"], task["warnings"]) == ("application", [])
    assert task["guest"]["component"] == "runtime"
    assert [item["state"] for item in task["guest"]["applications"]] == ["quiesced"]
    assert vm.run("cat /run/calls; rm /run/calls").split() == ["freeze", "thaw", "commit"]
    assert vm.run("find /run/understudy-guest -type f 2>/dev/null | wc -l").strip() == "0"
    assert freeze_status(vm) == "thawed"

    assert installation.json("guest", "install-agent", "nightly", vm.name)["installed"] is True
    assert vm.run(f"sh {AGENT_PATH} version").split() == ["understudy-guest", "1"]
    (task,) = installation.replicate("nightly")["tasks"]
    assert (task["consistency"], task["guest"]["component"]) == ("application", "agent")
    installation.ok("guest", "remove-agent", "nightly", vm.name)
    assert vm.run(f"test -e {AGENT_PATH} || echo gone").strip() == "gone"
