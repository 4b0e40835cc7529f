"""What did a run that was killed, cancelled or failed leave, and is every restore point what it was?

One running VM with a job serves all cases of a file: each case writes into the guest before and after it breaks a run,
at places of their own, so that a change which one run lost stays lost and shows at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from tests.system.commands import Answer
from tests.system.installation import Installation, assert_same, frozen_copy
from tests.system.living import our_processes, wait_gone
from understudy.lab import agent
from understudy.lab.lab import Lab
from understudy.lab.libvirt_calls import libvirt_calls
from understudy.lab.vm import LabVm


class Bench:
    """An installation with one running VM and its jobs, for many cases in a row."""

    def __init__(self, installation: Installation, vm: LabVm) -> None:
        self.installation = installation
        self.vm = vm
        self._known: dict[tuple[str, str], Path] = {}
        self._writes = 0

    @property
    def replica(self) -> str:
        """Name of the VM's replica of the ordinary job."""
        return f"{self.vm.name}_replica"

    def write(self) -> None:
        """Change 128 KiB of the guest's disk, at a new place, durably for the guest."""
        self._writes += 1
        self.vm.run(f"dd if=/dev/urandom of=/data/write-{self._writes} bs=64k count=2 conv=fsync 2>/dev/null")

    def record(self, replica: str) -> dict[str, Any]:
        """The replica's record, straight from its file."""
        document = json.loads((self.place(replica) / "replica.json").read_text())
        found = document["replica"]
        assert isinstance(found, dict)
        return found

    def place(self, replica: str) -> Path:
        """The replica's directory."""
        return self.installation.store / replica

    def point_ids(self, replica: str = "") -> list[str]:
        """Restore points, oldest first."""
        return [point["id"] for point in self.record(replica or self.replica)["points"]]

    def check_points(self, replica: str = "") -> None:
        """Every restore point seen before shows what it showed then; new ones are remembered."""
        name = replica or self.replica
        points = self.record(name)["points"]
        for point in points:
            image = self.place(name) / "layers" / point["disks"][0]["layer"]
            copy = self._known.get((name, point["id"]))
            if copy is not None:
                assert_same(image, copy)
                continue
            copy = self.installation.place / f"{name}-{point['id']}.raw"
            subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", str(image), str(copy)], check=True)
            self._known[(name, point["id"])] = copy
        kept = {(name, point["id"]) for point in points}
        for key in [key for key in self._known if key[0] == name and key not in kept]:
            self._known.pop(key).unlink()

    def verify_all(self, replica: str = "") -> None:
        """``replica verify`` finds every point good."""
        for point in self.point_ids(replica):
            self.installation.ok("replica", "verify", replica or self.replica, "--point", point)

    def run_broken(self, job: str, fault: str) -> Answer:
        """Run a job with a fault point armed."""
        return self.installation.run("--json", "job", "run", job, env={"UNDERSTUDY_FAULT": fault})

    def assert_healed(self, job: str, replica: str = "", reasons: Sequence[str] = ("",)) -> dict[str, Any]:
        """The next plain run succeeds, for one of ``reasons`` (empty: incremental), and all is clean afterwards."""
        session: dict[str, Any] = self.installation.replicate(job)
        (task,) = session["tasks"]
        (disk,) = task["disks"]
        assert disk["reason"] in reasons, session
        assert (disk["mode"] == "incremental") == (disk["reason"] == ""), session
        self.check_points(replica)
        self.assert_clean(replica)
        return session

    def assert_shows_the_source(self, job: str, replica: str = "") -> None:
        """A point made now, incrementally, is the guest's disk: no change was lost on the long way here."""
        with self.vm.domain() as domain:
            domain.suspend()
            try:
                copies = frozen_copy(self.vm, self.installation.place)
                (disk,) = self.installation.replicate(job)["tasks"][0]["disks"]
            finally:
                domain.resume()
        assert disk["mode"] == "incremental", disk
        newest = self.record(replica or self.replica)["points"][-1]
        assert_same(self.place(replica or self.replica) / "layers" / newest["disks"][0]["layer"], copies["vda"])
        copies["vda"].unlink()

    def wait_processes_gone(self) -> None:
        """The movers and watchdogs of a killed controller end by themselves, soon."""
        wait_gone(self.installation.lab.directory)

    def assert_clean(self, replica: str = "") -> None:
        """Nothing of an ended run is left, anywhere; each job has its baseline and no more."""
        name = replica or self.replica
        found = [*our_processes(self.installation.lab.directory), *self._stray_files(name)]
        with self.vm.domain() as domain:
            found += left_on_domain(domain, self.vm)
        assert not found, found

    def assert_thawed(self) -> None:
        """The guest's file systems are not frozen."""
        # A daemon that started anew answers before it has a connection to the guest's agent again.
        self.vm.wait_agent()
        with self.vm.host.connection() as connection:
            assert agent.call_agent(connection, self.vm.name, "guest-fsfreeze-status") == "thawed"

    def _stray_files(self, replica: str) -> list[str]:
        installation = self.installation
        places = [installation.scratch, *{disk.path.parent for disk in self.vm.disks}]
        found = [path for place in places if place.exists() for path in place.glob("*understudy-*")]
        found += [*installation.store.rglob("*.partial"), *(installation.home / "proxies").rglob("*.partial")]
        found += (installation.place / "tmp").glob("understudy-*")
        if (self.place(replica) / "replica.json").exists():
            found += unreferenced_files(self.place(replica), self.record(replica))
        return [str(path) for path in found]


def unreferenced_files(place: Path, record: dict[str, Any], *, excluded: bool = True) -> list[Path]:
    """What of a replica of layers no point needs.

    :param excluded: every point leaves something out, for every VM of the lab has a swap partition.
    """
    kinds = ("xml", "json", "excluded") if excluded else ("xml", "json")
    disks = [disk for point in record["points"] for disk in point["disks"]]
    needed = {
        "layers": {disk["layer"] for disk in disks} | {disk["backing"] for disk in disks},
        "digests": {disk["digest"] for disk in disks},
        "points": {f"{point['id']}.{kind}" for point in record["points"] for kind in kinds},
    }
    return [path for part, names in needed.items() for path in (place / part).iterdir() if path.name not in names]


def left_on_domain(domain: libvirt.virDomain, vm: LabVm) -> list[str]:
    """What of ours is on a domain, beyond one baseline for each job; and a guest that is frozen."""
    if not domain.isActive():
        return []
    found = []
    try:
        found.append(f"backup job {domain.backupGetXMLDesc()}")
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
            raise
    sources = [source.get("file", "") for source in ET.fromstring(domain.XMLDesc(0)).iterfind("devices/disk/source")]
    found += [f"disk source {source}" for source in sources if "understudy-" in Path(source).name]
    found += [f"block job on {disk.target}" for disk in vm.disks if domain.blockJobInfo(disk.target, 0)]
    names = [item.getName() for item in domain.listAllCheckpoints() if item.getName().startswith("understudy-")]
    if len({name.split("-")[1] for name in names}) < len(names):
        found.append(f"checkpoints {names}")
    nodes = _monitor(domain, "query-named-block-nodes")
    bitmaps = {bitmap.get("name", "") for node in nodes for bitmap in node.get("dirty-bitmaps", [])}
    found += [f"bitmap {name}" for name in sorted(bitmaps - set(names)) if name]
    found += [f"export {export}" for export in _monitor(domain, "query-block-exports")]
    if agent.call_agent(domain.connect(), vm.name, "guest-fsfreeze-status") != "thawed":
        found.append("frozen guest")
    return found


def _monitor(domain: libvirt.virDomain, command: str) -> list[dict[str, Any]]:
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": command}), 0))["return"]
    assert isinstance(answer, list)
    return answer


@contextmanager
def bench(lab: Lab, name: str, *, points: int) -> Iterator[Bench]:
    """A bench with a VM ``name`` and its job ``nightly``, both without a run so far; removed at the end."""
    place = lab.directory / f"test-{name}"
    (place / "tmp").mkdir(parents=True)
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(place / "tmp")
    try:
        installation = Installation(lab, place)
        vm = lab.create_vm(lab.alpha, name)
        vm.wait_agent()
        installation.job("nightly", vm.name, options=("--points", str(points)))
        yield Bench(installation, vm)
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        remove_vms(lab)


def remove_vms(lab: Lab) -> None:
    """Power off and undefine every VM of both hosts, and remove the disks that the lab made for them.

    No test sees another one's VMs, and each may use any name again.
    """
    flags = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    )
    for host in lab.hosts:
        with host.connection() as connection, libvirt_calls(f"remove the VMs of {host.name}"):
            for domain in connection.listAllDomains():
                if domain.isActive():
                    domain.destroy()
                if domain.isPersistent():
                    domain.undefineFlags(flags)
        images = host.directory / "images"
        if images.exists():
            shutil.rmtree(images)
