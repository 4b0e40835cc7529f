"""The line between two sites is cut: for a moment, for a minute, for longer than the job's patience."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.system.site_lab import FRAMES, LINE_BITS, SiteLab, cut, disk_of, fill, in_flight, site_lab
from understudy.lab.vm import LabVm
from understudy.units import MIB

DATA_MIB = 40
PATIENCE_S = 10
MINUTE_S = 60


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[SiteLab, LabVm]]:
    with site_lab("linked") as (sites, vm):
        sites.job("nightly", vm.name, points=3)
        sites.job("hasty", vm.name, points=3, suffix="_hasty", patience_s=PATIENCE_S)
        fill(vm, 8)
        for job in ("nightly", "hasty"):
            sites.replicate(job, vm)
        sites.lab.link.set_rate(LINE_BITS)
        yield sites, vm


def test_a_cut_of_a_second_costs_nothing(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    fill(vm, DATA_MIB)
    run = sites.begin("nightly", vm)
    fill(vm, 4, at_mib=2)
    run.await_sent(DATA_MIB * MIB // 3)
    with cut(sites):
        time.sleep(1)
    disk = disk_of(run.succeed())
    # TCP bears this: no connection is lost, so nothing is sent again.
    assert (disk.reconnects, disk.sent_bytes) == (0, DATA_MIB * MIB)
    assert disk.wire_bytes <= disk.sent_bytes * FRAMES


def test_a_cut_of_a_minute_breaks_every_connection_and_not_the_session(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    fill(vm, DATA_MIB)
    run = sites.begin("nightly", vm)
    fill(vm, 4, at_mib=2)
    run.await_sent(DATA_MIB * MIB // 3)
    with cut(sites):
        began = time.monotonic()
        waited = run.until(lambda: bool(run.disk().waiting), "the disk says why it waits")
        said = run.disk().waiting
        time.sleep(max(0.0, MINUTE_S - (time.monotonic() - began)))
        (task,) = sites.pair.json("session", "show", str(run.session))["tasks"]
        assert "does not answer" in next(shown["waiting"] for shown in task["disks"] if shown["name"] == "vdb")
    disk = disk_of(run.succeed())
    assert waited < 20
    assert "does not answer, since" in said
    assert disk.reconnects > 0
    assert DATA_MIB * MIB < disk.sent_bytes <= DATA_MIB * MIB + in_flight()
    assert disk.wire_bytes <= disk.sent_bytes * FRAMES
    assert disk.waiting == ""


def test_a_cut_beyond_patience_fails_the_session_and_the_next_continues_its_layer(
    scene: tuple[SiteLab, LabVm],
) -> None:
    sites, vm = scene
    fill(vm, DATA_MIB)
    run = sites.begin("hasty", vm)
    before = sites.point_ids(run.replica)
    run.await_sent(DATA_MIB * MIB // 2)
    with cut(sites):
        began = time.monotonic()
        error = run.fail()
        took = time.monotonic() - began
        assert took < PATIENCE_S + 40
        # The source host itself is not cut off from the controller: the snapshot need not wait for the line.
        sites.assert_released(vm)
    assert "'near'" in error
    assert "'far'" in error
    assert re.search(r"for \d\d s", error)
    assert sites.point_ids(run.replica) == before
    sites.check_points(run.replica)
    assert sites.partial_files(run.replica)
    # What had arrived, what had not, and what the guest writes in between: in both.
    fill(vm, 2, at_mib=1)
    fill(vm, 2, at_mib=DATA_MIB - 2)
    fill(vm, 2, at_mib=DATA_MIB + 8)
    disk = disk_of(sites.replicate("hasty", vm))
    assert disk.resumed_bytes > DATA_MIB * MIB // 2 - in_flight()
    assert disk.sent_bytes == (DATA_MIB + 2) * MIB - disk.resumed_bytes
    assert disk.wire_bytes <= disk.sent_bytes * FRAMES
