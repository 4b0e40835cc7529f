"""Restore points are proved by and by: damage is found, named and remembered, and the newest point is repaired."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system.aftermath import Bench, bench
from tests.system.commands import RUN_TIMEOUT_S, Answer
from tests.system.installation import assert_same, frozen_copy
from understudy.lab.lab import Lab

MIB = 1 << 20
RATE = 2 * MIB


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Bench]:
    """A replica with two points, one of them the base of the other."""
    with bench(lab, "health", points=4) as made:
        made.vm.run("dd if=/dev/urandom of=/data/bulk bs=1M count=24 conv=fsync 2>/dev/null")
        made.installation.replicate("nightly")
        made.write()
        made.installation.replicate("nightly")
        yield made


def mapped(image: Path) -> list[dict[str, Any]]:
    """The data of a chain: where the guest sees it, in which file it is, and where there."""
    said = subprocess.run(["qemu-img", "map", "-U", "--output=json", "-f", "qcow2", str(image)], capture_output=True,
                          check=True).stdout  # fmt: skip
    return [area for area in json.loads(said) if area["data"] and area["present"] and not area["zero"]]


def base_blocks(scene: Bench) -> dict[int, int]:
    """Blocks that the newest point has from its lowest layer alone: index, and a place of it in that file."""
    areas = mapped(layer(scene, scene.point_ids()[-1]))
    deepest = max(area["depth"] for area in areas)
    newer = {index for area in areas if area["depth"] < deepest for index in blocks_of(area)}
    return {
        index: area["offset"] + max(index * MIB, area["start"]) - area["start"]
        for area in areas if area["depth"] == deepest for index in blocks_of(area) if index not in newer
    }  # fmt: skip


def blocks_of(area: dict[str, Any]) -> range:
    return range(area["start"] // MIB, (area["start"] + area["length"] - 1) // MIB + 1)


def layer(scene: Bench, point: str) -> Path:
    """The layer that shows a point."""
    (found,) = [item for item in scene.record(scene.replica)["points"] if item["id"] == point]
    return scene.place(scene.replica) / "layers" / str(found["disks"][0]["layer"])


def flip(path: Path, places: Sequence[int]) -> None:
    """Change one byte at each place of a file; again, and it is as it was. Its mode stops nobody who is root."""
    fd = os.open(path, os.O_RDWR)
    try:
        for place in places:
            (byte,) = os.pread(fd, 1, place)
            os.pwrite(fd, bytes([byte ^ 0xFF]), place)
    finally:
        os.close(fd)


def health(scene: Bench, point: str) -> dict[str, Any]:
    """What is remembered of a point, straight from the file."""
    document = json.loads((scene.place(scene.replica) / "health.json").read_text())
    (found,) = [item for item in document["disks"] if item["point"] == point]
    assert isinstance(found, dict)
    return found


def verify(scene: Bench, *options: str, fault: str = "") -> Answer:
    environment = {"UNDERSTUDY_FAULT": fault} if fault else {}
    return scene.installation.run("--json", "replica", "verify", *options, env=environment)


@contextmanager
def stalled_verify(scene: Bench) -> Iterator[subprocess.Popen[str]]:
    """A verification that stands at the first position that is remembered, inside the block; it must succeed then."""
    release = scene.installation.place / f"release-{time.monotonic_ns()}"
    env = {**os.environ, "UNDERSTUDY_FAULT": "verify.position=stall", "UNDERSTUDY_FAULT_RELEASE": str(release)}
    command = scene.installation.command("--json", "replica", "verify", scene.replica, "--rate", "2M")
    process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not release.with_name(release.name + ".reached").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
        release.touch()
        out, err = process.communicate(timeout=RUN_TIMEOUT_S)
        assert process.returncode == 0, (out, err)
    finally:
        release.touch()
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_only_what_is_due_by_the_schedule_is_verified(scene: Bench) -> None:
    installation = scene.installation
    assert verify(scene, "--due").json == {"ok": True, "complete": True, "points": [], "problems": []}
    shown = installation.json("job", "set", "nightly", "--verify-every", "7d", "--verify-rate", "1G")
    assert (shown["verify_every_s"], shown["verify_rate"]) == (7 * 86400, 1 << 30)
    (done,) = verify(scene, "--due").json["points"]
    assert (done["point"], done["ok"], done["complete"]) == (scene.point_ids()[-1], True, True)
    assert verify(scene, "--due").json["points"] == []
    older, newest = installation.points(scene.replica)
    assert older["verified_at"] is None
    assert newest["verified_at"] == done["disks"][0]["verified_at"]
    installation.ok("job", "set", "nightly", "--verify-every", "1s")
    assert [point["point"] for point in verify(scene, "--due").json["points"]] == [newest["id"]]
    installation.ok("job", "set", "nightly", "--verify-every", "off")


def test_a_killed_verification_goes_on_where_it_was_and_reads_no_faster_than_it_may(scene: Bench) -> None:
    newest, places = scene.point_ids()[-1], base_blocks(scene)
    first = min(places)
    begun = time.monotonic()
    answer = verify(scene, scene.replica, "--rate", "2M", fault="verify.position=kill")
    took = time.monotonic() - begun
    assert answer.status == 1, answer
    assert "proxy" in answer.err
    left = health(scene, newest)
    assert left["started_at"]
    looked_at = sum(index * MIB < left["position"] for index in {
        index for area in mapped(layer(scene, newest)) for index in blocks_of(area)})  # fmt: skip
    assert left["position"] > first * MIB, left
    assert looked_at * MIB <= 1.15 * RATE * took
    scene.wait_processes_gone()

    flip(layer(scene, scene.point_ids()[0]), [places[first]])
    goes_on = verify(scene, scene.replica, "--rate", "off")
    assert goes_on.status == 0, "what lies before the position was read again"
    assert (health(scene, newest)["started_at"], health(scene, newest)["position"]) == ("", 0)
    anew = verify(scene, scene.replica)
    assert [disk["bad_blocks"] for disk in json.loads(anew.out)["disks"]] == [[first]]
    flip(layer(scene, scene.point_ids()[0]), [places[first]])
    assert verify(scene, scene.replica, "--restart").json["ok"] is True
    assert health(scene, newest)["bad"] == []


def test_a_verification_keeps_another_one_and_retention_waiting(scene: Bench) -> None:
    installation = scene.installation
    before = scene.point_ids()
    installation.ok("job", "set", "nightly", "--points", "2")
    with stalled_verify(scene):
        second = verify(scene, scene.replica)
        assert second.status == 2
        assert "being verified or merged just now" in second.err
        scene.write()
        session = installation.replicate("nightly")
        assert any("retention postponed" in text and "verified" in text for text in session["tasks"][0]["warnings"])
    assert scene.point_ids()[:2] == before
    assert len(scene.point_ids()) == 3
    installation.ok("job", "set", "nightly", "--points", "4")
    assert verify(scene, scene.replica, "--point", "gone").status == 2


def test_damage_is_named_with_its_blocks_and_every_point_that_reads_it(scene: Bench) -> None:
    points, places = scene.point_ids(), base_blocks(scene)
    first, *_, last = sorted(places)
    flip(layer(scene, points[0]), [places[first], places[last]])
    answer = scene.installation.run("replica", "verify", scene.replica)
    assert answer.status == 1
    assert answer.err.startswith(f"error: verify restore point {points[-1]!r} of replica {scene.replica!r}: disk vda: ")
    assert "2 of " in answer.err
    assert f"bytes {first * MIB} to {(first + 1) * MIB - 1}, bytes {last * MIB} to" in answer.err
    assert f"points affected too: {', '.join(points[:-1])}; run its job" in answer.err
    assert [point["bad_blocks"] for point in scene.installation.points(scene.replica)] == [2] * len(points)
    one = verify(scene, scene.replica, "--all")
    assert one.status == 1
    assert [point["ok"] for point in json.loads(one.out)["points"]] == [False] * len(points)


def test_the_next_session_repairs_the_newest_point_and_the_older_ones_stay_reported(scene: Bench) -> None:
    older = scene.point_ids()
    with scene.vm.domain() as domain:
        domain.suspend()
        try:
            copies = frozen_copy(scene.vm, scene.installation.place)
            (task,) = scene.installation.replicate("nightly")["tasks"]
        finally:
            domain.resume()
    assert [(disk["mode"], disk["reason"]) for disk in task["disks"]] == [("incremental", "")]
    (told,) = [text for text in task["warnings"] if "repaired" in text]
    assert told.startswith("2 damaged blocks of disk vda, found by verify at 20")
    assert told.endswith(", are repaired from the source")
    newest = scene.point_ids()[-1]
    assert_same(layer(scene, newest), copies["vda"])
    assert verify(scene, scene.replica).json["ok"] is True
    known = {point["id"]: point["bad_blocks"] for point in scene.installation.points(scene.replica)}
    assert known == dict.fromkeys(older[-3:], 2) | {newest: 0}
    assert verify(scene, scene.replica, "--point", older[-1]).status == 1
