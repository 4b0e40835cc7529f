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
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from understudy.lab import agent
from understudy.lab.disks import DataDisk
from understudy.lab.errors import LabError
from understudy.lab.lab import Lab
from understudy.lab.site_pair import SitePair
from understudy.lab.vm import LabVm
from understudy.units import MIB

VM = "shop server"
REPLICA = f"{VM}_replica"
JOB = "nightly"
CHANGE_FILE = "/data/order.txt"
LINE_BITS = 100_000_000
CUT_S = 4.0


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo did.

    :ivar sessions: JSON of its sessions, as ``session show`` gives it.
    :ivar change_in_replica: the change that was made in the guest was found inside the booted replica.
    """

    sessions: tuple[dict[str, Any], ...]
    change_in_replica: bool


def run_demo(say: Callable[[str], None], quiet: bool, two_hosts: bool) -> DemoOutcome:
    """Play the whole story; ``say`` gets a line per act, ``quiet`` keeps the commands' own output away.

    :param two_hosts: with a proxy on each host, TLS between them, and a line of 100 Mbit/s that is cut in the middle.
    :raises LabError: if the machine cannot run a lab, or a command failed.
    """
    say("Building the tiny guest (the first time only) and starting two private libvirt hosts, alpha and beta ...")
    with Lab.open(linked=two_hosts) as lab:
        place = lab.directory / "home"
        if not two_hosts:
            return _Story(lab, say, _Here(place, say, quiet)).play()
        pair = SitePair(lab, lab.directory / "sites")
        (lab.directory / "sites").mkdir(mode=0o755)
        try:
            return _Story(lab, say, _OnBeta(pair, say, quiet)).play()
        finally:
            pair.close()


class _Commands(Protocol):
    """Where the commands of the story are run."""

    def show(self, *arguments: str) -> None:
        """Run a command before the user's eyes.

        :raises LabError: if it fails.
        """

    def json(self, *arguments: str) -> Any:
        """What a command answers."""

    def connect(self) -> None:
        """Get proxies ready."""

    def first_run(self) -> None:
        """Run the job for the first time."""


class _Here:
    """On this machine; progress bars included."""

    def __init__(self, home: Path, say: Callable[[str], None], quiet: bool) -> None:
        self._home = home
        self._say = say
        self._quiet = quiet

    def show(self, *arguments: str) -> None:
        self._say(f"$ understudy {shlex.join(arguments)}")
        out = subprocess.DEVNULL if self._quiet else None
        status = subprocess.run(self._command(*arguments), stdout=out, check=False).returncode
        if status != 0:
            raise LabError(f"understudy {shlex.join(arguments)}", f"it ended with status {status}")

    def json(self, *arguments: str) -> Any:
        done = subprocess.run(self._command("--json", *arguments), stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    def connect(self) -> None:
        """The built-in proxy is enough."""

    def first_run(self) -> None:
        self.show("job", "run", JOB)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "understudy", "--home", str(self._home), *arguments]


class _OnBeta:
    """On host beta, where the controller is; proxies are enrolled on both hosts."""

    def __init__(self, pair: SitePair, say: Callable[[str], None], quiet: bool) -> None:
        self._pair = pair
        self._say = say
        self._quiet = quiet

    def show(self, *arguments: str) -> None:
        self._say(f"beta$ understudy {shlex.join(arguments)}")
        self._tell(self._pair.run(*arguments))

    def json(self, *arguments: str) -> Any:
        return self._pair.json(*arguments)

    def connect(self) -> None:
        for name, host in (("near", self._pair.lab.alpha), ("far", self._pair.lab.beta)):
            self._say(f"\n== Enrolling a proxy on host {host.name}: one command on the controller, one on the host.")
            self._say(f"beta$ understudy proxy invite {name} --host {host.name}")
            token = self._pair.enrol(name, host)
            self._say(f"{host.name}# understudy proxy enrol {token[:16]}...")
        self.show("proxy", "list")
        self._pair.lab.link.set_rate(LINE_BITS)
        self._say(f"\n== From now on the line between the hosts carries {LINE_BITS // 10**6} Mbit/s.")

    def first_run(self) -> None:
        self._say(f"beta$ understudy job run {JOB}")
        running = self._pair.start("job", "run", JOB)
        deadline = time.monotonic() + 120
        while not self._wire_bytes() and running.alive and time.monotonic() < deadline:
            time.sleep(0.2)
        self._say(f"... and while it runs, the line is cut for {CUT_S:.0f} seconds.")
        self._pair.lab.link.cut()
        time.sleep(CUT_S)
        self._pair.lab.link.restore()
        status = running.wait(timeout_s=600)
        self._tell(running.log.read_text())
        if status != 0:
            raise LabError(f"understudy job run {JOB}", f"it ended with status {status}")

    def _wire_bytes(self) -> int:
        sessions = self.json("session", "list", "--job", JOB)
        disks = [
            disk for session in sessions for task in self.json("session", "show", str(session["id"]))["tasks"]
            for disk in task["disks"]
        ]
        return sum(int(disk["wire_bytes"]) for disk in disks)

    def _tell(self, output: str) -> None:
        if not self._quiet:
            self._say(output.rstrip())


class _Story:
    def __init__(self, lab: Lab, say: Callable[[str], None], commands: _Commands) -> None:
        self._lab = lab
        self._say = say
        self._commands = commands
        self._store = lab.directory / "datastore"

    def play(self) -> DemoOutcome:
        vm = self._start_guest()
        self._configure()
        self._act("First replication: everything is new.")
        self._commands.first_run()
        order = self._change(vm)
        self._act("Second replication: only what changed travels.")
        self._commands.show("job", "run", JOB)
        found = self._failover(order)
        self._commands.show("failover", "undo", REPLICA)
        self._commands.show("replica", "points", REPLICA)
        sessions = tuple(self._commands.json("session", "show", str(number)) for number in (1, 2))
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
            self._commands.show("host", "add", host.name, host.uri, "--scratch-dir", scratch)
        self._commands.connect()
        self._commands.show("datastore", "add", "vault", "--host", "beta", "--path", str(self._store))
        self._commands.show("job", "create", JOB, "--source", "alpha", "--vm", VM, "--target", "beta",
                            "--datastore", "vault", "--points", "3")  # fmt: skip

    def _change(self, vm: LabVm) -> str:
        order = f"order {secrets.token_hex(8)}"
        self._act(f"Inside the guest: writing {order!r} to {CHANGE_FILE}, and 4 MiB of other data.")
        vm.write_file(CHANGE_FILE, order.encode())
        vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M seek=100 count=4 2>/dev/null; sync")
        return order

    def _failover(self, order: str) -> bool:
        self._act("Failover: host beta starts the replica from the newest restore point.")
        self._commands.show("failover", "start", REPLICA)
        with self._lab.beta.connection() as beta:
            agent.wait_agent(beta, REPLICA, timeout_s=180)
            seen = agent.read_guest_file(beta, REPLICA, CHANGE_FILE).decode(errors="replace")
        if seen != order:
            raise LabError("look inside the replica", f"{CHANGE_FILE} says {seen!r} instead of {order!r}")
        self._say(f"The replica has booted; inside it {CHANGE_FILE} says {seen!r}: the change is there.")
        return True

    def _act(self, text: str) -> None:
        self._say(f"\n== {text}")
