"""What the replica store's tests share: a store, a model of what each point must contain, and QEMU as the judge."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from understudy.model.replica import Baseline, Consistency, ReplicaIdentity
from understudy.storage.qcow2.format import CLUSTER
from understudy.storage.qcow2.layer import Qcow2LayerWriter
from understudy.storage.qcow2.store import Qcow2Store
from understudy.storage.values import NewDisk, PointMeta

IDENTITY = ReplicaIdentity("11111111-2222-3333-4444-555555555555", "web 1_replica", "7", "nightly", "web 1",
                           "source-uuid", "domain-uuid")
DEFINITION = "<domain><name>web 1 – Zürich</name></domain>"


def point_meta(point: str, block_size: int = 1 << 20) -> PointMeta:
    """Values for a point."""
    return PointMeta(point, "2026-01-02T03:04:05+00:00", Consistency.CRASH, 1, block_size, Baseline("cp-1", ("vda",)),
                     {"understudy": "0.1.0"}, DEFINITION)


def qemu(*command: str | Path) -> str:
    """Run a QEMU tool; its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def content(image: Path) -> bytes:
    """What QEMU reads from an image."""
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory) / "raw"
        qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
        return raw.read_bytes()


def assert_clean(image: Path) -> None:
    """QEMU finds no error and no leak in the image."""
    report = json.loads(qemu("qemu-img", "check", "--output=json", "-f", "qcow2", image))
    assert not {"corruptions", "leaks", "check-errors"} & {key for key, value in report.items() if value}


def random_data(rng: random.Random, length: int) -> bytes:
    """Bytes that compress to nothing and are cheap to make: no two clusters alike."""
    return rng.randbytes(length)


def scribble(rng: random.Random, writer: Qcow2LayerWriter, image: bytearray, acts: int) -> None:
    """Write and zero random ranges through ``writer`` and in ``image``."""
    clusters = -(-len(image) // CLUSTER)
    for _ in range(acts):
        first = rng.randrange(clusters)
        start, end = first * CLUSTER, min(len(image), (first + rng.randint(1, 6)) * CLUSTER)
        data = random_data(rng, end - start) if rng.random() < 0.6 else bytes(end - start)
        if any(data):
            writer.write_at(start, data)
        else:
            writer.zero(start, end - start)
        image[start:end] = data


@dataclass
class Lab:
    """A replica and what its points must contain."""

    store: Qcow2Store
    images: dict[str, dict[str, bytes]] = field(default_factory=dict)
    heads: dict[str, bytes] = field(default_factory=dict)

    def add_point(self, rng: random.Random, point: str, sizes: dict[str, int], full: frozenset[str] = frozenset(),
                  acts: int = 5) -> None:
        """Publish a point with random changes; disks in ``full``, new ones and shrunk ones get a layer of their own."""
        newest = self.store.load().newest
        before = self.images[newest.id] if newest else {}
        disks = tuple(NewDisk(name, size, name in before and name not in full and len(before[name]) <= size)
                      for name, size in sizes.items())
        draft = self.store.begin_point(point, disks)
        images = {}
        for disk in disks:
            image = bytearray(before[disk.name].ljust(disk.size, b"\0")) if disk.chained else bytearray(disk.size)
            writer = draft.layer(disk.name)
            assert isinstance(writer, Qcow2LayerWriter)
            scribble(rng, writer, image, acts)
            writer.finish()
            draft.digest_path(disk.name).write_bytes(b"digest of " + point.encode())
            images[disk.name] = bytes(image)
        draft.publish(point_meta(point))
        self.images[point] = images

    def write_head(self, disk: str, offset: int, pattern: int, length: int) -> None:
        """Write to the head as a running replica VM would."""
        facts = self.store.head()
        path = Path(facts.files[disk])
        qemu("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {offset} {length}", path)
        image = bytearray(self.heads.get(disk, self.images[facts.point][disk]))
        image[offset:offset + length] = bytes([pattern]) * length
        self.heads[disk] = bytes(image)

    def verify(self) -> None:
        """Every point on record, and the head, contains what it must."""
        replica = self.store.load()
        for point in replica.points:
            assert self.store.damage(point.id) == []
            assert {disk.name for disk in point.disks} == set(self.images[point.id])
            for part in point.disks:
                assert content(self.store.image(point.id, part.name)) == self.images[point.id][part.name], \
                    f"{part.name} at {point.id}"
                assert self.store.digest_path(point.id, part.name).read_bytes() == b"digest of " + point.id.encode()
            assert self.store.definition(point.id) == DEFINITION
        for disk, image in self.heads.items():
            assert content(Path(self.store.head().files[disk])) == image

    def verify_files(self) -> None:
        """Nothing is left that the record does not need, and every layer is clean."""
        replica = self.store.load()
        root = self.store.image(replica.points[0].id, replica.points[0].disks[0].name).parent.parent
        found = {str(path.relative_to(root)) for path in root.rglob("*")
                 if path.is_file() and path.parent.name != "head"}
        found -= {".verify", ".health"}  # locks whose holder lost its power: who locks next removes them
        wanted = {".lock", "replica.json", "replica.json.previous"}
        for point in replica.points:
            wanted |= {f"points/{point.id}.xml", f"points/{point.id}.json"}
            for part in point.disks:
                wanted |= {f"layers/{part.layer}", f"digests/{part.digest}"}
                assert_clean(root / "layers" / part.layer)
        assert found == wanted


@contextmanager
def lab_in(datastore: Path, name: str = "web 1_replica") -> Iterator[Lab]:
    """A new, locked replica."""
    store = Qcow2Store(datastore, name)
    with store.lock(1):
        store.create(IDENTITY)
        yield Lab(store)


def run_store(datastore: Path, act: str, fault: str = "") -> int:
    """Run ``act``, an expression on ``store``, in another process under the lock; its exit status."""
    code = ("import sys\nfrom pathlib import Path\nfrom understudy.storage.values import NewDisk\n"
            "from understudy.storage.qcow2.store import Qcow2Store\nfrom replica_lab import *\n"
            f"store = Qcow2Store(Path({str(datastore)!r}), 'web 1_replica')\n"
            f"with store.lock(1):\n    {act}\n")
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "UNDERSTUDY_FAULT": fault, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode
