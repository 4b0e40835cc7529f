"""Real mover processes that are killed in the middle: what another process makes of what they left."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.contract.test_mover import SIZE, Lab
from tests.unit.mover.mover_lab import make_image, write
from tests.unit.mover.wire_lab import eventually
from understudy.faults import VARIABLE
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.process import MoverProcess
from understudy.storage.values import NewDisk
from understudy.units import KIB, MIB


class Continued(Lab):
    """A lab whose layers may be continued."""

    def open(self, target: MoverProcess, *, resume: bool = False) -> tuple[str, str]:
        """A draft on ``target``: of a new attempt, or the one before."""
        self.target = target
        self.attempt += 0 if resume else 1
        point = f"p{self.attempt:04d}"
        disks = (NewDisk("vda", self.size(), chained=False, mark="m"),)
        request = api.BeginPoint(self.ref, self.identity, self.attempt, point, disks, resume)
        return target.client.call(request, api.DraftOpened).draft, point

    def receive(self, draft: str) -> tuple[str, api.TargetAddress]:
        """Begin the target side."""
        request = api.ReceiveDisk(draft, "vda", SIZE, self.block_size, "", 20.0)
        started = self.target.client.call(request, api.ReceiveStarted)
        return started.work, api.TargetAddress(started.socket, "", started.ticket)


def mover(directory: Path, name: str) -> MoverProcess:
    """A mover process."""
    return MoverProcess(name, directory / name, directory / f"{name}-state", directory / f"{name}.log")


@pytest.fixture
def lab(tmp_path: Path) -> Continued:
    (tmp_path / "ds").mkdir()
    image = make_image(tmp_path / "source.qcow2", SIZE)
    dice = random.Random(3)
    write(image, 1, *((index * MIB, dice.choice([64 * KIB, MIB])) for index in range(10)))
    nobody: MoverProcess = None  # type: ignore[assignment]
    return Continued(nobody, nobody, tmp_path, image)


def test_a_send_survives_the_death_of_the_target(
    lab: Continued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mover(tmp_path, "s") as source:
        monkeypatch.setenv(VARIABLE, "checkpoint.recorded=kill")
        with mover(tmp_path, "t1") as doomed:
            monkeypatch.delenv(VARIABLE)
            lab.source = source
            draft, point = lab.open(doomed)
            _, address = lab.receive(draft)
            opened = source.client.call(api.OpenExport(str(lab.image), "qcow2", "", "t"), api.OpenedExport)
            read = api.ReadSpec(opened.source, "vda", SIZE, TransferMode.FULL, MIB, False, lab.replica_id, "", point)
            send = api.SendDisk(read, address, lab.compression, 2, 30.0)
            work = source.client.call(send, api.WorkStarted).work
            eventually(lambda: not doomed.alive, "its death")
        with mover(tmp_path, "t2") as target:
            draft, _ = lab.open(target, resume=True)
            received, address = lab.receive(draft)
            source.client.call(api.RedirectSend(work, address), api.Nothing)
            progress = lab.wait(source, work)
            lab.wait(target, received)
            assert progress.processed == SIZE
            assert progress.reconnects >= 1
            lab.publish(draft, point)
            source.client.call(api.CloseExport(opened.id), api.Nothing)
            target.client.call(api.ReleaseDraft(draft), api.Nothing)
            lab.check()
