"""A stand-in for a guest for each shell that guests have."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.guests.component.private_guest import PrivateGuest, private_guest
from understudy.guests.component import shell_component


@pytest.fixture(scope="module", params=["dash", "busybox"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateGuest]:
    """A stand-in that the tests of a module share."""
    if os.geteuid() != 0:
        pytest.skip("a guest's program is run as root, in namespaces of its own")
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    shell = ("busybox", "sh") if request.param == "busybox" else (request.param,)
    directory: Path = tmp_path_factory.mktemp("guest")
    with private_guest(directory, shell, shell_component()) as made:
        yield made


@pytest.fixture
def guest(machine: PrivateGuest) -> Iterator[PrivateGuest]:
    """The stand-in, with nothing of a session in it before and after."""
    yield machine
    machine.ask("cleanup")
    machine.sh("rm -rf /etc/understudy/* /tmp/calls")
