"""An installation whose jobs replicate from a front's vCenter to a libvirt host of the lab, by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vsphere.front import Front
from tests.vsphere.library.kit import StandIn
from understudy.lab.hosts import LabHost
from understudy.platforms.vsphere.trust import fetch_certificate

RUN_TIMEOUT_S = 400
#: Something that comes in a moment, on a busy machine.
WAIT_S = 90


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


@dataclass
class HeldRun:
    """A ``job run`` that stands at a fault point; ``answer`` is there when the block is left."""

    process: subprocess.Popen[str]
    answer: Answer | None = None

    @property
    def ended(self) -> Answer:
        """What it said."""
        assert self.answer is not None
        return self.answer


@dataclass(frozen=True)
class Vsphere:
    """Hosts ``vc`` and ``beta``, and a datastore on beta.

    :ivar elsewhere: what starts a program where the commands run, if that is not here.
    """

    vcenter: Front
    library: StandIn
    home: Path
    elsewhere: tuple[str, ...] = ()

    def command(self, *arguments: str) -> list[str]:
        """The argument vector of a command."""
        return [*self.elsewhere, sys.executable, "-m", "understudy", "--home", str(self.home), *arguments]

    def run(self, *arguments: str, said: str = "", env: Mapping[str, str] | None = None) -> Answer:
        """Run a command to its end; ``said`` goes to its standard input."""
        environment = {**os.environ, "UNDERSTUDY_COMMIT_PAUSES": "0", **(env or {})}
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=RUN_TIMEOUT_S,
                              check=False, input=said, env=environment)  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str, said: str = "") -> Answer:
        """Run a command that must succeed."""
        answer = self.run(*arguments, said=said)
        assert answer.status == 0, (arguments, answer)
        return answer

    def job(self, name: str, *vms: str, options: tuple[str, ...] = (), datastore: str = "ds") -> None:
        """Create a job from the vCenter to beta."""
        wanted = [word for vm in vms for word in ("--vm", vm)]
        self.ok("job", "create", name, "--source", "vc", "--target", "beta", "--datastore", datastore, *wanted,
                "--block-size", "256K", *options)  # fmt: skip

    def replicate(self, job: str, *options: str) -> dict[str, Any]:
        """Run a job of one VM that must succeed; its task as JSON."""
        answer = self.run("--json", "job", "run", job, *options)
        assert answer.status == 0, answer
        (task,) = answer.json["tasks"]
        assert isinstance(task, dict)
        return task

    def newest(self, vm: str) -> dict[str, Path]:
        """The images of the newest restore point of a VM's replica, by disk."""
        points = self.ok("--json", "replica", "points", f"{vm}_replica").json
        return {disk["name"]: Path(disk["image"]) for disk in points[-1]["disks"]}

    @contextmanager
    def held(self, job: str, point: str) -> Iterator[HeldRun]:
        """Run a job and stop at a fault point; inside the block it stands there, then it goes on to its end."""
        release = self.home / f"release-{time.monotonic_ns()}"
        env = {"UNDERSTUDY_FAULT": f"{point}=stall", "UNDERSTUDY_FAULT_RELEASE": str(release)}
        with self.under_way(job, env) as run:
            try:
                reached = release.with_name(release.name + ".reached")
                await_while(run, reached.exists, f"{point} was not reached")
                yield run
            finally:
                release.touch()

    @contextmanager
    def under_way(self, job: str, env: Mapping[str, str] | None = None) -> Iterator[HeldRun]:
        """Run a job; the block sees it run, and it is waited for afterwards."""
        environment = {**os.environ, "UNDERSTUDY_COMMIT_PAUSES": "0", **(env or {})}
        process = subprocess.Popen(self.command("--json", "job", "run", job), env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        run = HeldRun(process)
        try:
            yield run
            out, err = process.communicate(timeout=RUN_TIMEOUT_S)
            run.answer = Answer(process.wait(), out, err)
        finally:
            if run.answer is None:
                process.kill()
                process.communicate()

    @contextmanager
    def killed(self, job: str, point: str) -> Iterator[None]:
        """Run a job and kill its controller at a fault point; the block runs after that."""
        release = self.home / f"release-{time.monotonic_ns()}"
        env = {**os.environ, "UNDERSTUDY_FAULT": f"{point}=stall", "UNDERSTUDY_FAULT_RELEASE": str(release)}
        process = subprocess.Popen(self.command("--json", "job", "run", job), env=env, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        try:
            deadline = time.monotonic() + RUN_TIMEOUT_S
            while not release.with_name(release.name + ".reached").exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, f"{point} was not reached"
                time.sleep(0.02)
        finally:
            process.kill()
            process.communicate()
        yield


@contextmanager
def installed(vcenter: Front, library: StandIn, beta: LabHost, place: Path) -> Iterator[Vsphere]:
    """A new home with both hosts."""
    made = Vsphere(vcenter, library, place / "home")
    place.chmod(0o755)
    store = place / "store"
    store.mkdir(mode=0o755)
    made.ok("credential", "add", "vcenter", "--user", vcenter.user, "--password-stdin", said=f"{vcenter.password}\n")
    shown = fetch_certificate("127.0.0.1", vcenter.port)
    made.ok("host", "add", "vc", f"vpx://127.0.0.1:{vcenter.port}/", "--credential", "vcenter", "--thumbprint",
            shown.thumbprint, "--library-dir", library.library.directory, "--library-plugin",
            library.library.plugin)  # fmt: skip
    made.ok("host", "add", "beta", beta.uri, "--scratch-dir", str(place / "scratch"))
    made.ok("datastore", "add", "ds", "--host", "beta", "--path", str(store))
    yield made


def await_while(run: HeldRun, true: Callable[[], bool], what: str) -> None:
    """Wait until something is true, which it must become while the command runs."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert run.process.poll() is None, run.process.communicate()
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def task_of(answer: Answer) -> dict[str, Any]:
    """The task of a run of one VM."""
    (task,) = answer.json["tasks"]
    assert isinstance(task, dict)
    return task


def modes(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Mode and reason of each disk."""
    return [(disk["mode"], disk["reason"]) for disk in task["disks"]]


def raw(image: Path) -> bytes:
    """What a restore point's image shows."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "copy.raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(copy)], check=True)
        return copy.read_bytes()
