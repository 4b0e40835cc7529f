"""The conversion of a head in a proxy, with programs in place of virt-v2v that do what it may do, good and bad.

What virt-v2v itself makes of a guest is proved in tests/proof.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from understudy.errors import Cancelled, Fenced, MoverError, Refused, ReplicaError, from_fields
from understudy.model.replica import Consistency, Conversion, ReplicaIdentity
from understudy.mover import api
from understudy.mover.process import MoverProcess
from understudy.platforms.vsphere.definition import DiskController, HardwareDisk, VmHardware, domain_definition
from understudy.storage import open_store
from understudy.storage.values import NewDisk, PointMeta
from understudy.units import MIB

DISKS = ("scsi0:0", "scsi0:1")
HARDWARE = VmHardware(
    "web", str(uuid.UUID(int=1)), str(uuid.UUID(int=2)), "vmx-19", "debian11_64Guest", 256 * MIB, 1,
    disks=tuple(HardwareDisk(name, DiskController.PVSCSI, 0, unit, MIB) for unit, name in enumerate(DISKS)),
)  # fmt: skip
# Writes to every disk that the domain names, as a conversion does.
CONVERTS = """set -e
[ "$1 $2" = "-i libvirtxml" ]
for head in $(grep -o 'file="[^"]*"' "$3" | cut -d'"' -f2); do qemu-io -c 'write -P 7 0 64k' "$head"; done
"""


@dataclass
class Replica:
    """A replica of two disks in a datastore, and the proxy there."""

    mover: MoverProcess
    directory: Path
    program: Path
    attempt: int = 1

    @property
    def ref(self) -> api.ReplicaRef:
        return api.ReplicaRef("qcow2", str(self.directory / "ds"), "web")

    def owner(self) -> api.OwnedReplica:
        self.attempt += 1
        return api.OwnedReplica(self.ref, attempt=self.attempt)

    def publish(self, definition: str) -> None:
        store = open_store("qcow2", self.directory / "ds", "web")
        with store.lock(1):
            store.create(ReplicaIdentity(str(uuid.uuid4()), "web", "j", "j", "web", "u", str(uuid.uuid4())))
            draft = store.begin_point("p1", tuple(NewDisk(name, MIB, chained=False) for name in DISKS))
            for name in DISKS:
                draft.layer(name).write_at(0, b"\1" * MIB)
                draft.layer(name).finish()
                draft.digest_path(name).write_bytes(b"digest")
            draft.publish(PointMeta("p1", "2026-01-02T03:04:05Z", Consistency.CRASH, 1, MIB, None, {}, definition))

    def bind(self) -> api.HeadBound:
        return self.mover.client.call(api.BindHead(self.owner(), "p1"), api.HeadBound)

    def begin(self, timeout_s: float = 60.0) -> str:
        return self.mover.client.call(api.ConvertHead(self.owner(), timeout_s), api.WorkStarted).work

    def end(self, work: str) -> None:
        status = self.mover.client.call(api.WorkQuery(work, 60.0), api.WorkStatus)
        if status.error is not None:
            raise from_fields(status.error.code, status.error.what, status.error.why, status.error.todo)
        assert status.state is api.WorkState.DONE

    def convert(self, timeout_s: float = 60.0) -> None:
        self.end(self.begin(timeout_s))

    def facts(self) -> api.ReplicaFacts:
        return self.mover.client.call(api.InspectReplica(self.ref), api.ReplicaFacts)

    def conversion(self) -> Conversion:
        head = self.facts().head
        assert head is not None
        return head.conversion

    def layers(self) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (self.directory / "ds" / "web" / "layers").iterdir()}

    def first_byte(self, path: str) -> int:
        raw = subprocess.run(["qemu-io", "-r", "-c", "read -v 0 16", path], capture_output=True, text=True, check=True)
        return int(raw.stdout.split(":", 1)[1].split()[0], 16)


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Replica]]:
    """Makes a replica whose proxy finds ``script`` under the program's name."""
    started: list[MoverProcess] = []

    def make(script: str) -> Replica:
        program = tmp_path / "bin" / "virt-v2v-in-place"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        (tmp_path / "ds").mkdir()
        mover = MoverProcess("target", tmp_path / "run", tmp_path / "state", tmp_path / "log")
        started.append(mover.__enter__())
        made = Replica(mover, tmp_path, program)
        made.publish(domain_definition(HARDWARE))
        return made

    yield make
    for mover in started:
        mover.__exit__(None, None, None)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_all_heads_are_converted_and_no_layer_is_touched(replica: Callable[[str], Replica]) -> None:
    web = replica(CONVERTS)
    head = web.bind().head
    before = web.layers()
    assert web.mover.client.call(api.ProbeConversion(), api.ConversionFacts).program == str(web.program)
    web.convert()
    assert web.conversion() is Conversion.VIRTIO
    assert [web.first_byte(head.files[disk]) for disk in DISKS] == [7, 7]
    assert web.layers() == before
    assert web.facts().damage == {}
    # Undo: a new head shows the point again, and is not converted.
    head = web.bind().head
    assert web.conversion() is Conversion.NONE
    assert [web.first_byte(head.files[disk]) for disk in DISKS] == [1, 1]


def test_a_head_is_not_converted_twice_nor_after_it_was_written_to(replica: Callable[[str], Replica]) -> None:
    web = replica(CONVERTS)
    with pytest.raises(Refused, match="it has no head"):
        web.convert()
    web.bind()
    web.convert()
    with pytest.raises(Refused, match="written to already"):
        web.convert()
    subprocess.run(["qemu-io", "-c", "write -P 3 0 64k", web.bind().head.files[DISKS[1]]], check=True)
    with pytest.raises(Refused, match="written to already"):
        web.convert()


def test_a_vm_of_the_targets_own_platform_is_not_converted(replica: Callable[[str], Replica]) -> None:
    web = replica(CONVERTS)
    (web.directory / "ds" / "web" / "points" / "p1.xml").write_text("<domain type='kvm'><name>web</name></domain>")
    web.bind()
    with pytest.raises(Refused, match="of this same platform"):
        web.convert()
    assert web.conversion() is Conversion.NONE


def test_a_definition_that_does_not_know_a_head_is_refused_before_anything_is_written(
        replica: Callable[[str], Replica]) -> None:
    web = replica(CONVERTS)
    fewer = domain_definition(replace(HARDWARE, disks=HARDWARE.disks[:1]))
    (web.directory / "ds" / "web" / "points" / "p1.xml").write_text(fewer)
    head = web.bind().head
    with pytest.raises(ReplicaError, match="has no disk scsi0:1"):
        web.convert()
    assert web.conversion() is Conversion.NONE
    assert web.first_byte(head.files[DISKS[0]]) == 1


def test_what_the_program_says_is_the_error_and_the_head_counts_as_half_converted(
        replica: Callable[[str], Replica]) -> None:
    web = replica("echo 'virt-v2v-in-place: error: no root device\n\nIf reporting bugs, do so'; exit 1\n")
    web.bind()
    with pytest.raises(MoverError, match="virt-v2v-in-place failed: no root device; see") as caught:
        web.convert()
    assert "reporting" not in caught.value.why
    assert web.conversion() is Conversion.UNFINISHED
    assert web.bind().head.conversion is Conversion.NONE


def test_a_program_that_writes_to_a_layer_is_found_out(replica: Callable[[str], Replica]) -> None:
    web = replica("")
    web.bind()
    layer = next(path for path in (web.directory / "ds" / "web" / "layers").iterdir())
    web.program.write_text(f"#!/bin/sh\nprintf x | dd of={layer} bs=1 conv=notrunc 2>/dev/null\n")
    with pytest.raises(ReplicaError, match="layers of restore points were written to"):
        web.convert()
    assert web.conversion() is Conversion.UNFINISHED


# Like virt-v2v, it leaves a qemu-nbd that has the head open, and waits.
HANGS = """head=$(grep -o 'file="[^"]*"' "$3" | head -n 1 | cut -d'"' -f2)
setsid qemu-nbd -t -k "$(dirname "$3")/nbd" -f qcow2 "$head" &
until [ -S "$(dirname "$3")/nbd" ]; do sleep 0.05; done
touch "$(dirname "$0")/reached"
sleep 600
"""


def test_at_the_deadline_nothing_of_it_runs_any_more(replica: Callable[[str], Replica]) -> None:
    web = replica(HANGS)
    web.bind()
    with pytest.raises(MoverError, match="did not end within 3 s"):
        web.convert(timeout_s=3.0)
    assert web.bind().head.conversion is Conversion.NONE  # refused if a process had the old head open


def test_cancelled_nothing_of_it_runs_any_more(replica: Callable[[str], Replica]) -> None:
    web = replica(HANGS)
    web.bind()
    work = web.begin()
    wait_for((web.program.parent / "reached").exists)
    with pytest.raises(Fenced, match="another session or command owns it"):
        web.bind()
    web.mover.client.call(api.CancelWork(work), api.Nothing)
    with pytest.raises(Cancelled):
        web.end(work)
    assert web.conversion() is Conversion.UNFINISHED
    assert web.bind().head.conversion is Conversion.NONE


def test_killed_the_proxy_takes_it_along_and_a_new_head_mends_the_replica(replica: Callable[[str], Replica]) -> None:
    web = replica(HANGS)
    web.bind()
    before = web.layers()
    web.begin()
    wait_for((web.program.parent / "reached").exists)
    os.kill(web.mover.pid, signal.SIGKILL)
    with MoverProcess("again", web.directory / "run2", web.directory / "state", web.directory / "log2") as again:
        web.mover = again
        assert web.conversion() is Conversion.UNFINISHED

        def mended() -> bool:
            try:
                return web.bind().head.conversion is Conversion.NONE
            except Refused:
                return False  # the kernel is still about to end what had the head open

        wait_for(mended)
    assert web.layers() == before
