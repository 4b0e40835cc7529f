"""Killed anywhere, the store loses no restore point, and the next sweep puts everything in order."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from understudy.errors import Fenced
from understudy.storage.qcow2.format import CLUSTER
from understudy.storage.qcow2.store import Qcow2Store
from understudy.storage.values import NewDisk
from understudy.units import MIB

from .replica_lab import Lab, lab_in, run_store

PUBLISH = ("draft = store.begin_point('p5', (NewDisk('vda', 20 * 65536, True), NewDisk('new', 65536, False)))\n    "
           "for d in ('vda', 'new'):\n        draft.layer(d).finish()\n        "
           "draft.digest_path(d).write_bytes(b'digest of p5')\n    "
           "draft.publish(point_meta('p5'))")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lab]:
    """A replica of four points with disks that chain, stand alone, come and go; and a head that was written to."""
    datastore = tmp_path_factory.mktemp("template")
    with lab_in(datastore) as lab:
        rng = random.Random(11)
        lab.add_point(rng, "p1", {"vda": 20 * CLUSTER, "vdb": 9 * CLUSTER + 512, "old": CLUSTER}, acts=9)
        lab.add_point(rng, "p2", {"vda": 20 * CLUSTER, "vdb": 12 * CLUSTER}, acts=9)
        lab.add_point(rng, "p3", {"vda": 20 * CLUSTER, "vdb": 12 * CLUSTER}, acts=9)
        lab.add_point(rng, "p4", {"vda": 20 * CLUSTER, "vdb": 12 * CLUSTER}, full=frozenset({"vdb"}), acts=9)
        lab.images["p5"] = {"vda": lab.images["p4"]["vda"], "new": bytes(CLUSTER)}
        lab.store.bind_head("p3")
        lab.write_head("vda", 5 * CLUSTER, 3, 700)
    return datastore, lab


def fresh(template: tuple[Path, Lab], tmp_path: Path) -> tuple[Path, Lab]:
    datastore = tmp_path / "datastore"
    shutil.copytree(template[0], datastore)
    return datastore, Lab(Qcow2Store(datastore, "web 1_replica"), template[1].images, dict(template[1].heads))


@pytest.mark.parametrize("points", [("p1",), ("p1", "p2")])
@pytest.mark.parametrize("place", ["recorded", "committed", "rebased", "dropped"])
def test_a_killed_retirement_loses_nothing(template: tuple[Path, Lab], tmp_path: Path, place: str,
                                           points: tuple[str, ...]) -> None:
    datastore, lab = fresh(template, tmp_path)
    fault = f"retire.{place}=kill"
    assert run_store(datastore, f"store.retire({points!r})", fault) == -9
    lab.verify()
    for _ in range(3):  # the sweep is killed as well, as far as it comes
        run_store(datastore, "store.sweep()", fault)
        lab.verify()
    assert run_store(datastore, "store.sweep()") == 0
    assert not {point.id for point in lab.store.load().points} & set(points)
    lab.verify()
    lab.verify_files()
    assert run_store(datastore, "assert store.sweep() == []") == 0


@pytest.mark.parametrize(("place", "count"), [("layers_durable", 4), ("renamed", 4), ("recorded", 5)])
def test_a_killed_publish_shows_the_point_wholly_or_not_at_all(template: tuple[Path, Lab], tmp_path: Path, place: str,
                                                              count: int) -> None:
    datastore, lab = fresh(template, tmp_path)
    assert run_store(datastore, PUBLISH, f"publish.{place}=kill") == -9
    assert len(lab.store.load().points) == count
    lab.verify()
    assert run_store(datastore, "store.sweep()") == 0
    lab.verify()
    lab.verify_files()
    if count == 4:
        assert run_store(datastore, PUBLISH) == 0
        lab.verify()
        lab.verify_files()


@pytest.mark.parametrize("place", ["dropped", "renamed"])
def test_a_killed_bind_leaves_no_mixed_head(template: tuple[Path, Lab], tmp_path: Path, place: str) -> None:
    datastore, lab = fresh(template, tmp_path)
    assert run_store(datastore, "store.bind_head('p4')", f"head.{place}=kill") == -9
    lab.heads.clear()
    facts = lab.store.head()
    assert (facts.point, facts.files) == ("", {})
    assert run_store(datastore, "store.sweep()") == 0
    assert list((datastore / "web 1_replica" / "head").iterdir()) == []
    assert run_store(datastore, "assert store.bind_head('p4').empty") == 0
    assert lab.store.head().point == "p4"
    lab.verify()


@pytest.mark.parametrize("delay_ms", [5, 15, 30, 45, 60, 90, 130])
def test_a_merge_killed_with_its_qemu_img_at_any_time_loses_nothing(tmp_path: Path, delay_ms: int) -> None:
    with lab_in(tmp_path) as lab:
        rng = random.Random(delay_ms)
        for point in ("p1", "p2", "p3"):
            lab.add_point(rng, point, {"vda": 48 * MIB + 512}, acts=600 if point == "p1" else 200)
    code = ("import sys\nfrom pathlib import Path\nfrom understudy.storage.qcow2.store import Qcow2Store\n"
            f"store = Qcow2Store(Path({str(tmp_path)!r}), 'web 1_replica')\n"
            "with store.lock(1):\n    print('go', flush=True)\n    store.retire(('p1', 'p2'))\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"go\n"
    time.sleep(delay_ms / 1000)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    _wait_for_lock(lab)  # the killed qemu-img holds it for as long as it is dying
    lab.verify()
    with lab.store.lock(1):
        lab.store.sweep()
        lab.verify()
        rest = tuple(point.id for point in lab.store.load().points[:-1])
        lab.store.retire(rest)
        lab.verify()
        lab.verify_files()


def test_an_orphaned_qemu_img_keeps_the_replica_locked(template: tuple[Path, Lab], tmp_path: Path) -> None:
    datastore, lab = fresh(template, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    fake = tools / "qemu-img"
    fake.write_text("#!/bin/sh\ntouch $0.started\nwhile [ ! -e $0.end ]; do sleep 0.05; done\n")
    fake.chmod(0o755)
    code = ("from pathlib import Path\nfrom understudy.storage.qcow2.store import Qcow2Store\n"
            f"store = Qcow2Store(Path({str(datastore)!r}), 'web 1_replica')\n"
            "with store.lock(1):\n    store.retire(('p1',))\n")
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    started = tools / "qemu-img.started"
    while not started.exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not _lock_is_free(lab)
    (tools / "qemu-img.end").touch()
    _wait_for_lock(lab)
    assert run_store(datastore, "store.sweep()") == 0
    lab.verify()
    lab.verify_files()


def _wait_for_lock(lab: Lab) -> None:
    while not _lock_is_free(lab):
        time.sleep(0.02)


def _lock_is_free(lab: Lab) -> bool:
    try:
        with lab.store.lock(1):
            return True
    except Fenced:
        return False


def test_partial_files_of_the_dead_go_and_foreign_files_stay(template: tuple[Path, Lab], tmp_path: Path) -> None:
    datastore, lab = fresh(template, tmp_path)
    root = datastore / "web 1_replica"
    ours = ["layers/vda-p9.qcow2", "layers/vda-p9.qcow2.partial", "digests/vda-p9.digest.partial", "points/p9.xml",
            "points/p9.xml.partial", "replica.json.partial", "head/vdx.qcow2", "head/vda.qcow2.partial"]
    theirs = ["layers/notes.txt", "layers/vda.qcow2", "layers/.nfs0001", "README", "points/p9.xml.bak", "head/vda.raw"]
    for name in ours + theirs:
        (root / name).write_bytes(b"x")
    with lab.store.lock(1):
        assert sorted(lab.store.sweep()) == sorted(f"removed {name}" for name in ours)
    for name in theirs:
        assert (root / name).read_bytes() == b"x"
    lab.verify()


def test_a_dead_session_may_be_followed_by_the_same_point_id(template: tuple[Path, Lab], tmp_path: Path) -> None:
    datastore, lab = fresh(template, tmp_path)
    disks = (NewDisk("vda", 20 * CLUSTER, True),)
    with lab.store.lock(1):
        lab.store.begin_point("p5", disks)
    again = Qcow2Store(datastore, "web 1_replica")
    with again.lock(2):
        again.sweep()
        again.begin_point("p5", disks).abandon()
        assert again.sweep() == []
