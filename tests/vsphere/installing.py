"""An installation whose jobs replicate from a front's vCenter, by the command line."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.commands import Answer, Commands
from tests.vsphere.front import Front
from tests.vsphere.library.kit import StandIn
from understudy.lab.hosts import LabHost
from understudy.platforms.vsphere.trust import fetch_certificate


@dataclass
class Vsphere(Commands):
    """Host ``vc``, and whatever other hosts, datastores and jobs a test makes.

    :ivar elsewhere: what starts a program where the commands run, if that is not here.
    """

    vcenter: Front
    library: StandIn
    home: Path
    elsewhere: tuple[str, ...] = ()
    anew: bool = False

    @property
    def environment(self) -> Mapping[str, str]:
        """Merges are not waited for."""
        return {"UNDERSTUDY_COMMIT_PAUSES": "0"}

    def job(self, name: str, *vms: str, options: tuple[str, ...] = (), datastore: str = "ds",
            target: str = "beta") -> None:  # fmt: skip
        """Create a job from the vCenter to beta, or to another host."""
        wanted = [word for vm in vms for word in ("--vm", vm)]
        self.ok("job", "create", name, "--source", "vc", "--target", target, "--datastore", datastore, *wanted,
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


def with_vcenter(vcenter: Front, library: StandIn, place: Path) -> Vsphere:
    """A new home below ``place`` with the host ``vc``."""
    made = Vsphere(vcenter, library, place / "home")
    made.ok("credential", "add", "vcenter", "--user", vcenter.user, "--password-stdin", said=f"{vcenter.password}\n")
    shown = fetch_certificate("127.0.0.1", vcenter.port)
    made.ok("host", "add", "vc", f"vpx://127.0.0.1:{vcenter.port}/", "--credential", "vcenter", "--thumbprint",
            shown.thumbprint, "--library-dir", library.library.directory, "--library-plugin",
            library.library.plugin)  # fmt: skip
    return made


@contextmanager
def installed(vcenter: Front, library: StandIn, beta: LabHost, place: Path) -> Iterator[Vsphere]:
    """A new home with the hosts ``vc`` and ``beta``, and the datastore ``ds`` on beta."""
    place.chmod(0o755)
    store = place / "store"
    store.mkdir(mode=0o755)
    made = with_vcenter(vcenter, library, place)
    made.ok("host", "add", "beta", beta.uri, "--scratch-dir", str(place / "scratch"))
    made.ok("datastore", "add", "ds", "--host", "beta", "--path", str(store))
    yield made


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
