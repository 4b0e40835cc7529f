"""Two sites: a proxy service on each of two linked lab hosts, and the controller on the second, as at a recovery site.

Everything is done by the real command line, on the hosts themselves: invitations on the controller's host, enrolment on
the proxy's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.lab.errors import LabError
from understudy.lab.host_process import HostProcess
from understudy.lab.hosts import LabHost
from understudy.lab.lab import Lab

_READY = "listens on"


class SitePair:
    """A controller on host beta of a linked lab, and proxies on both hosts.

    :param directory: for the controller's home, the proxies' state and logs; the same path on both hosts.
    """

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.home = directory / "home"
        self._directory = directory
        self.proxies: dict[str, HostProcess] = {}
        self._hosts: dict[str, LabHost] = {}
        self._addresses = {lab.alpha.name: lab.link.alpha_address, lab.beta.name: lab.link.beta_address}

    def command(self, *arguments: str) -> list[str]:
        """The argument vector of a command of this controller."""
        return [sys.executable, "-m", "understudy", "--home", str(self.home), *arguments]

    def run(self, *arguments: str, timeout_s: float = 600, env: Mapping[str, str] | None = None) -> str:
        """Run a command on the controller's host; what it wrote to stdout.

        :raises CommandFailed: if it does not end with 0.
        """
        return self.lab.beta.run(self.command(*arguments), timeout_s, env=env)

    def json(self, *arguments: str) -> Any:
        """Run a command with ``--json`` on the controller's host."""
        return json.loads(self.run("--json", *arguments))

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> HostProcess:
        """Start a command on the controller's host; its output is in the log that belongs to it."""
        number = len(list(self._directory.glob("command-*.log")))
        log = self._directory / f"command-{number}.log"
        return self.lab.beta.start_process(self.command(*arguments), env=env, log=log)

    def enrol(self, name: str, host: LabHost) -> str:
        """Make ``host`` the proxy ``name`` of the controller, for its own disks, and start it; the token it took."""
        controller = self._addresses[self.lab.beta.name]
        invited = self.json("proxy", "invite", name, "--host", host.name, "--controller", controller)
        token = str(invited["token"])
        enrolling = ["proxy", "enrol", token, "--state-dir", str(self.state_dir(name)), "--no-start"]
        host.run([sys.executable, "-m", "understudy", *enrolling])
        self._hosts[name] = host
        self.start_proxy(name)
        return token

    def state_dir(self, name: str) -> Path:
        """Where a proxy keeps its key and settings."""
        return self._directory / f"proxy-{name}"

    def start_proxy(self, name: str, env: Mapping[str, str] | None = None) -> HostProcess:
        """Start an enrolled proxy, as its service manager would; ready when this returns."""
        serving = [sys.executable, "-m", "understudy", "proxy", "serve", "--state-dir", str(self.state_dir(name))]
        number = len(list(self._directory.glob(f"{name}-*.log")))
        log = self._directory / f"{name}-{number}.log"
        process = self._hosts[name].start_process(serving, env=env, log=log)
        self.proxies[name] = process
        _await_ready(process, name)
        return process

    def close(self) -> None:
        """End the proxies."""
        for process in self.proxies.values():
            if process.alive:
                process.terminate()
                process.wait()
        self.proxies.clear()


def _await_ready(process: HostProcess, name: str) -> None:
    deadline = time.monotonic() + 30
    while _READY not in process.log.read_text(errors="replace"):
        if not process.alive or time.monotonic() > deadline:
            raise LabError(f"start proxy {name}", process.log.read_text(errors="replace")[-1000:] or "it says nothing")
        time.sleep(0.05)
