"""The controller, a proxy or a libvirt daemon dies at every place of a run. Nothing is lost, and the next run heals.

QEMU and the power of the target have files of their own: they take more with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.system.matrix import PLACES, Actor, Matrix, matrix
from tests.system.places import SOURCES, fault_points, rows_of_borders
from understudy.lab.lab import Lab

#: Inside the store: the source's proxy is not in touch with it, and the target's dies there with the power of its host.
ELSEWHERE = fault_points("storage")
PLACES_OF_PROXIES = rows_of_borders([place for place in fault_points() if place not in ELSEWHERE])


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Matrix]:
    with matrix(lab, "headless") as made:
        yield made


def test_every_fault_point_but_those_of_the_steps_has_a_name_that_can_be_found() -> None:
    texts = [path.read_text() for path in SOURCES.rglob("*.py")]
    calls = [call for text in texts for call in re.findall(r"(?<!def )fault_point\((.*)\)", text)]
    assert [call for call in calls if not call.startswith('"')] == ['f"{step}.before"', 'f"{step}.after"']


def test_every_place_lies_on_the_way_of_a_run(scene: Matrix) -> None:
    """A new fault point that none of the ways reaches needs a way of its own, or is no part of a run."""
    assert [place for place in PLACES if scene.way_to(place) is None] == []


@pytest.mark.parametrize("place", PLACES)
def test_the_controller_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.CONTROLLER)


def test_no_change_was_lost_with_any_controller(scene: Matrix) -> None:
    """Before anybody dies who makes a run scan, which would find what an earlier one lost."""
    scene.assert_nothing_lost()


@pytest.mark.parametrize("place", PLACES_OF_PROXIES)
def test_the_source_proxy_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.SOURCE_PROXY)


@pytest.mark.parametrize("place", PLACES_OF_PROXIES)
def test_the_target_proxy_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.TARGET_PROXY)


@pytest.mark.parametrize("place", rows_of_borders())
@pytest.mark.parametrize("actor", [Actor.SOURCE_LIBVIRT, Actor.TARGET_LIBVIRT])
def test_a_libvirt_daemon_dies(scene: Matrix, actor: Actor, place: str) -> None:
    scene.strike(place, actor)


def test_no_change_was_lost_and_every_point_verifies(scene: Matrix) -> None:
    scene.assert_nothing_lost()
