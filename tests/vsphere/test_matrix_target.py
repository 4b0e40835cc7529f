"""Somebody dies at every place of a run whose restore points are snapshots: nothing is lost, and the next run heals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.places import borders, fault_points, rows, rows_of_borders, steps
from tests.vsphere.matrix import LAYERS, READING, Actor, Matrix, matrix
from tests.vsphere.scene import opened_vcenter
from tests.vsphere.shelves import Snapshots

pytestmark = pytest.mark.timeout(1200)

POINTS = fault_points(without=LAYERS)
#: What the target's proxy does alone: keep the record, and see to the leaves' bytes.
ALONE = [place for place in fault_points("storage", without=LAYERS) + fault_points("mover", without=LAYERS)
         if place not in READING]  # fmt: skip
#: Where the controller is at work on the replica VM.
CONTROLLED = [place for place in POINTS if place not in (*READING, *ALONE)]


@pytest.fixture(scope="module")
def scene() -> Iterator[Matrix]:
    with opened_vcenter(vms=1) as (made, _, place):
        store = place / "store"
        made.ok("datastore", "add", "ds", "--host", "vc", "--path", str(store), "--kind", "vsphere", "--place",
                "LocalDS_0")  # fmt: skip
        with matrix(made, Snapshots(store, made.vcenter), place, "vc") as learned:
            yield learned


def test_every_place_lies_on_the_way_of_a_run(scene: Matrix) -> None:
    """A new fault point that none of the ways reaches needs a way of its own, or is no part of a run."""
    assert [place for place in (*steps(), *POINTS) if scene.way_to(place) is None] == []


@pytest.mark.parametrize("place", rows(POINTS, steps()))
def test_the_controller_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.CONTROLLER)


@pytest.mark.parametrize("place", rows([], [*borders(), *READING, *CONTROLLED]))
def test_the_source_proxy_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.SOURCE_PROXY)


@pytest.mark.parametrize("place", rows(ALONE, [*borders(), *READING, *CONTROLLED]))
def test_the_target_proxy_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.TARGET_PROXY)


@pytest.mark.parametrize("place", rows_of_borders())
def test_the_vcenter_forgets_everybody(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.VCENTER)


def test_no_change_was_lost_and_every_point_verifies(scene: Matrix) -> None:
    scene.assert_nothing_lost()
