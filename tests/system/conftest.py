"""One lab for all system tests; an installation of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from tests.system.installation import Installation
from understudy.lab.lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two private libvirt hosts."""
    with Lab.open() as opened:
        yield opened


@pytest.fixture
def installation(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Installation]:
    """A new home, datastore and scratch directory inside the lab's directory."""
    with installation_in(lab, f"test-{abs(hash(request.node.nodeid)):x}") as made:
        yield made


@contextmanager
def installation_in(lab: Lab, name: str) -> Iterator[Installation]:
    """A new installation, and no VMs on either host afterwards."""
    place = lab.directory / name
    place.mkdir()
    try:
        yield Installation(lab, place)
    finally:
        _remove_replicas(lab)


def _remove_replicas(lab: Lab) -> None:
    """Power off and undefine what the test left on both hosts, so that no test sees another one's VMs."""
    flags = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    )
    for host in lab.hosts:
        with host.connection() as connection:
            for domain in connection.listAllDomains():
                if domain.isActive():
                    domain.destroy()
                if domain.isPersistent():
                    domain.undefineFlags(flags)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this directory needs the lab."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.system)
