"""A front with two running VMs, a session with it, and the first VM's disk; and the disk library's double."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.system.forked import close_forks
from tests.vsphere.client import Client, connected
from tests.vsphere.front import Front, front
from tests.vsphere.library import kit
from tests.vsphere.library.kit import StandIn, stand_in
from tests.vsphere.library.lab import serve_vms, sparse
from tests.vsphere.simulator import Inventory, missing
from tests.vsphere.steps import AREA, SIZE, VM


@pytest.fixture(scope="session", autouse=True)
def forks_end() -> Iterator[None]:
    """What commands are forked from ends with the tests."""
    yield
    close_forks()


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Front]:
    if reason := missing():
        pytest.skip(reason)
    with front(Inventory(vms=2), tmp_path, page=3) as running:
        yield running


@pytest.fixture
def client(vcenter: Front) -> Iterator[Client]:
    with connected(vcenter.url, vcenter.user, vcenter.password) as session:
        yield session


@pytest.fixture
def vm(client: Client) -> Any:
    return client.named(vim.VirtualMachine, VM)


@pytest.fixture
def key(vcenter: Front, tmp_path: Path) -> int:
    """The key of a disk of 4 MiB that has the first and the last area allocated."""
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.write(b"first" * 1000)
        file.seek(SIZE - AREA)
        file.write(b"last." * 1000)
        file.truncate(SIZE)
    return vcenter.place_disk(VM, raw)


@pytest.fixture(scope="session")
def library_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit with the stand-in; without compiler, nbdkit or plugin the test is skipped."""
    if reason := kit.missing():
        pytest.skip(reason)
    return kit.build(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def library(library_kit: Path, tmp_path: Path) -> Iterator[StandIn]:
    """The stand-in, with the VMs of :func:`serve_vms` in ``live.raw`` and ``frozen.raw``."""
    with stand_in(library_kit, tmp_path) as made:
        serve_vms(made, sparse(tmp_path / "live.raw", seed=1), sparse(tmp_path / "frozen.raw", seed=2))
        yield made
