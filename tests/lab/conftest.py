"""One lab for all checks of the lab itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.lab.disks import DataDisk
from understudy.lab.lab import DEFAULT_CACHE, Lab
from understudy.lab.vm import LabVm


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    return DEFAULT_CACHE


@pytest.fixture(scope="session")
def lab(cache_dir: Path) -> Iterator[Lab]:
    with Lab.open(cache_dir=cache_dir) as opened:
        yield opened


@pytest.fixture(scope="module")
def linked_lab(cache_dir: Path) -> Iterator[Lab]:
    with Lab.open(cache_dir=cache_dir, linked=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def source_vm(lab: Lab) -> LabVm:
    """A running guest on alpha: an empty qcow2 disk (vdb) and a raw disk with a file system (vdc)."""
    disks = [DataDisk(64 << 20), DataDisk(32 << 20, "raw", "extra")]
    return lab.create_vm(lab.alpha, "web server ü 1", data_disks=disks)


@pytest.fixture(scope="session")
def target_vm(lab: Lab) -> LabVm:
    """A running guest on beta, of the same name as the one on alpha."""
    return lab.create_vm(lab.beta, "web server ü 1", overlay=True)


@pytest.fixture
def vm(source_vm: LabVm) -> LabVm:
    source_vm.wait_agent()
    return source_vm
