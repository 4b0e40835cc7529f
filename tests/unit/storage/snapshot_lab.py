"""What the tests of the store of snapshots share: leaves served by qemu-nbd, points, and the store in a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.unit.storage.replica_lab import DEFINITION, IDENTITY, point_meta
from understudy.model.extent import Extent
from understudy.model.replica import RestorePoint
from understudy.mover.exports import greets
from understudy.storage.snapshots.draft import SnapshotDraft
from understudy.storage.snapshots.store import SnapshotStore
from understudy.storage.values import NewDisk, PointMeta

__all__ = ["DEFINITION", "IDENTITY", "NAME", "SIZE", "Leaf", "anything", "nothing", "point_meta", "publish",
           "run_snapshot_store", "served_leaf"]

NAME = "web 1_replica"
SIZE = 5 * 65536 + 512


def nothing(_run: Extent) -> Sequence[Extent]:
    """The disk is new."""
    return ()


def anything(run: Extent) -> Sequence[Extent]:
    """Nothing is known of the disk."""
    return (run,)


class Leaf:
    """A raw file that qemu-nbd serves for writing."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes], socket: Path) -> None:
        self.path = path
        self.process = process
        self.socket = str(socket)


@contextmanager
def served_leaf(path: Path, size: int, content: bytes = b"", *faults: str) -> Iterator[Leaf]:
    """A leaf with ``content``, inside the context.

    :param faults: errors that the file has, as options of QEMU's blkdebug.
    """
    path.write_bytes(content)
    os.truncate(path, size)
    socket = path.with_suffix(".nbd")
    options = ["driver=raw", "file.driver=blkdebug", "file.image.driver=file", f"file.image.filename={path}"]
    options += [f"file.inject-error.0.{fault}" for fault in (("event=none", *faults) if faults else ())]
    process = subprocess.Popen(["qemu-nbd", "--persistent", "-e", "1", "-k", str(socket), "-x", "disk",
                                "--image-opts", ",".join(options)])
    try:
        while not greets(socket, 30):
            assert process.poll() is None
            time.sleep(0.01)
        yield Leaf(path, process, socket)
    finally:
        process.kill()
        process.wait()
        socket.unlink(missing_ok=True)


def publish(store: SnapshotStore, directory: Path, point: str, *disks: NewDisk, fill: bytes = b"\1",
            meta: PointMeta | None = None) -> RestorePoint:
    """A point whose disks are full of ``fill``."""
    return complete(store.begin_point(point, disks), directory, disks, fill).publish(meta or point_meta(point))


def complete(draft: SnapshotDraft, directory: Path, disks: Sequence[NewDisk], fill: bytes = b"\1") -> SnapshotDraft:
    """Write every disk of a draft, and its digests."""
    for disk in disks:
        with served_leaf(directory / f"{disk.name}.raw", disk.size) as leaf:
            draft.attach(disk.name, leaf.socket, "disk", nothing)
            draft.layer(disk.name).write_at(0, fill * disk.size)
            draft.layer(disk.name).finish()
        draft.digest_path(disk.name).write_bytes(b"digests")
    return draft


def run_snapshot_store(datastore: Path, act: str, fault: str = "") -> int:
    """Run ``act``, an expression on ``store``, in another process under the lock; its exit status."""
    code = ("from pathlib import Path\nfrom tests.unit.storage.snapshot_lab import *\n"
            "from tests.unit.storage.snapshot_lab import complete\nfrom understudy.storage.values import NewDisk\n"
            "from understudy.storage.snapshots.store import SnapshotStore\n"
            f"datastore = Path({str(datastore)!r})\nstore = SnapshotStore(datastore, NAME)\n"
            f"with store.lock(1):\n    {act}\n")
    root = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "UNDERSTUDY_FAULT": fault, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode
