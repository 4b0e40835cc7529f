"""The target datastore gets full while a disk arrives over the link."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.site_lab import LINE_BITS, SiteLab, disk_of, fill, site_lab
from understudy.lab.small_fs import SmallFs
from understudy.lab.vm import LabVm
from understudy.units import MIB

DATA_MIB = 40
SPARE_MIB = 24


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[SiteLab, LabVm, SmallFs]]:
    with site_lab("filled") as (sites, vm):
        small = SmallFs.mount(sites.lab.beta, sites.place / "small", 256 * MIB)
        sites.pair.run("datastore", "add", "small", "--host", "beta", "--path", str(small.directory))
        sites.store = small.outside
        sites.job("nightly", vm.name, points=3, datastore="small")
        fill(vm, 8)
        sites.replicate("nightly", vm)
        sites.lab.link.set_rate(LINE_BITS)
        yield sites, vm, small


def test_a_datastore_that_gets_full_fails_the_run_clearly_and_keeps_every_point(
    scene: tuple[SiteLab, LabVm, SmallFs],
) -> None:
    sites, vm, small = scene
    fill(vm, DATA_MIB)
    run = sites.begin("nightly", vm)
    before = sites.point_ids(run.replica)
    run.await_sent(DATA_MIB * MIB // 8)
    # The space was there when the run began; somebody else takes it.
    hog = small.directory / "hog"
    sites.lab.beta.run(["fallocate", "--length", str(small.free() - SPARE_MIB * MIB), str(hog)])
    error = run.fail()
    assert "the datastore is full" in error
    assert sites.point_ids(run.replica) == before
    sites.check_points(run.replica)
    assert sites.pair.json("replica", "verify", run.replica)["ok"]
    # A partial layer would only be in the way here.
    assert not sites.partial_files(run.replica)
    sites.assert_clean(run)


def test_with_room_again_the_next_run_succeeds(scene: tuple[SiteLab, LabVm, SmallFs]) -> None:
    sites, vm, small = scene
    (small.outside / "hog").unlink()
    disk = disk_of(sites.replicate("nightly", vm))
    assert (disk.mode, disk.resumed_bytes, disk.sent_bytes) == ("incremental", 0, DATA_MIB * MIB)
