"""Somebody dies at every place of a run from a vCenter to a libvirt host: nothing is lost, and the next run heals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.places import OF_SNAPSHOTS, borders, fault_points, rows, steps
from tests.vsphere.matrix import LAYERS, READING, Actor, Matrix, matrix, publishing
from tests.vsphere.scene import opened_world
from tests.vsphere.shelves import Layers

pytestmark = pytest.mark.timeout(1200)

POINTS = [*fault_points(without=(*LAYERS, *OF_SNAPSHOTS)), *publishing()]


@pytest.fixture(scope="module")
def scene() -> Iterator[Matrix]:
    with opened_world(vms=1) as world:
        place = world.made.home.parent
        with matrix(world.made, Layers(place / "store"), place, "beta") as made:
            yield made


def test_every_place_lies_on_the_way_of_a_run(scene: Matrix) -> None:
    """A new fault point that none of the ways reaches needs a way of its own, or is no part of a run."""
    assert [place for place in (*steps(), *POINTS) if scene.way_to(place) is None] == []


@pytest.mark.parametrize("place", rows(POINTS, steps()))
def test_the_controller_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.CONTROLLER)


@pytest.mark.parametrize("place", rows(READING, borders()))
def test_the_source_proxy_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.SOURCE_PROXY)


@pytest.mark.parametrize("place", rows([], [*borders(), *POINTS]))
def test_the_target_proxy_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.TARGET_PROXY)


@pytest.mark.parametrize("place", rows([], borders()))
def test_the_vcenter_forgets_everybody(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.VCENTER)


def test_no_change_was_lost_and_every_point_verifies(scene: Matrix) -> None:
    scene.assert_nothing_lost()
