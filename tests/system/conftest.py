"""One lab for all system tests; an installation of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.aftermath import remove_vms
from tests.system.forked import close_forks
from tests.system.installation import Installation
from understudy.lab.lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two private libvirt hosts."""
    with Lab.open() as opened:
        try:
            yield opened
        finally:
            close_forks()


@pytest.fixture
def installation(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Installation]:
    """A new home, datastore and scratch directory inside the lab's directory."""
    anew = request.node.get_closest_marker("anew") is not None
    with installation_in(lab, f"test-{abs(hash(request.node.nodeid)):x}", anew=anew) as made:
        yield made


@contextmanager
def installation_in(lab: Lab, name: str, *, anew: bool = False) -> Iterator[Installation]:
    """A new installation, and no VMs on either host afterwards."""
    place = lab.directory / name
    place.mkdir()
    try:
        yield Installation(lab, place, anew=anew)
    finally:
        remove_vms(lab)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this directory needs the lab."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.system)
