"""The main job before the user's eyes: replicate a small VM, change it, fail over, look inside the replica, undo.

Every act is a real ``understudy`` command against two private libvirt hosts; nothing of the machine's own libvirt is
touched, and everything is removed at the end.
"""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from understudy.lab import agent
from understudy.lab.disks import DataDisk
from understudy.lab.errors import LabError
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm
from understudy.units import MIB

VM = "shop server"
REPLICA = f"{VM}_replica"
JOB = "nightly"
CHANGE_FILE = "/data/order.txt"


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo did.

    :ivar sessions: JSON of its sessions, as ``session show`` gives it.
    :ivar change_in_replica: the change that was made in the guest was found inside the booted replica.
    """

    sessions: tuple[dict[str, Any], ...]
    change_in_replica: bool


def run_demo(say: Callable[[str], None], quiet: bool) -> DemoOutcome:
    """Play the whole story; ``say`` gets a line per act, ``quiet`` keeps the commands' own output away.

    :raises LabError: if the machine cannot run a lab, or a command failed.
    """
    say("Building the tiny guest (the first time only) and starting two private libvirt hosts, alpha and beta ...")
    with Lab.open() as lab:
        return _Story(lab, say, quiet).play()


class _Story:
    def __init__(self, lab: Lab, say: Callable[[str], None], quiet: bool) -> None:
        self._lab = lab
        self._say = say
        self._quiet = quiet
        self._home = lab.directory / "home"
        self._store = lab.directory / "datastore"

    def play(self) -> DemoOutcome:
        vm = self._start_guest()
        self._configure()
        self._act("First replication: everything is new.")
        self._understudy("job", "run", JOB)
        order = self._change(vm)
        self._act("Second replication: only what changed travels.")
        self._understudy("job", "run", JOB)
        found = self._failover(order)
        self._understudy("failover", "undo", REPLICA)
        self._understudy("replica", "points", REPLICA)
        sessions = tuple(self._session(number) for number in (1, 2))
        self._say("\nEverything is removed: guests, hosts, datastore.")
        return DemoOutcome(sessions, found)

    def _start_guest(self) -> LabVm:
        self._act(f"Starting the VM {VM!r} on host alpha, with a data disk.")
        vm = self._lab.create_vm(self._lab.alpha, VM, data_disks=[DataDisk(256 * MIB)])
        vm.wait_agent(timeout_s=180)
        vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=48 2>/dev/null; sync", timeout_s=300)
        return vm

    def _configure(self) -> None:
        self._act("Telling Understudy about the hosts, a datastore on beta, and the job.")
        self._store.mkdir(mode=0o755)
        scratch = str(self._lab.directory / "scratch")
        for host in self._lab.hosts:
            self._understudy("host", "add", host.name, host.uri, "--scratch-dir", scratch)
        self._understudy("datastore", "add", "vault", "--host", "beta", "--path", str(self._store))
        self._understudy("job", "create", JOB, "--source", "alpha", "--vm", VM, "--target", "beta",
                         "--datastore", "vault", "--points", "3")  # fmt: skip

    def _change(self, vm: LabVm) -> str:
        order = f"order {secrets.token_hex(8)}"
        self._act(f"Inside the guest: writing {order!r} to {CHANGE_FILE}, and 4 MiB of other data.")
        vm.write_file(CHANGE_FILE, order.encode())
        vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M seek=100 count=4 2>/dev/null; sync")
        return order

    def _failover(self, order: str) -> bool:
        self._act("Failover: host beta starts the replica from the newest restore point.")
        self._understudy("failover", "start", REPLICA)
        with self._lab.beta.connection() as beta:
            agent.wait_agent(beta, REPLICA, timeout_s=180)
            seen = agent.read_guest_file(beta, REPLICA, CHANGE_FILE).decode(errors="replace")
        if seen != order:
            raise LabError("look inside the replica", f"{CHANGE_FILE} says {seen!r} instead of {order!r}")
        self._say(f"The replica has booted; inside it {CHANGE_FILE} says {seen!r}: the change is there.")
        return True

    def _act(self, text: str) -> None:
        self._say(f"\n== {text}")

    def _understudy(self, *arguments: str) -> None:
        """Run a command before the user's eyes, progress bars included.

        :raises LabError: if it fails.
        """
        self._say(f"$ understudy {shlex.join(arguments)}")
        out = subprocess.DEVNULL if self._quiet else None
        status = subprocess.run(self._command(*arguments), stdout=out, check=False).returncode
        if status != 0:
            raise LabError(f"understudy {shlex.join(arguments)}", f"it ended with status {status}")

    def _session(self, number: int) -> dict[str, Any]:
        command = self._command("--json", "session", "show", str(number))
        shown: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        return shown

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "understudy", "--home", str(self._home), *arguments]
