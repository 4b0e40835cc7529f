"""About: versions of what touches data in this process, for the record of each restore point."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from understudy.mover.api import MoverInfo


def about(name: str, identity: str = "") -> MoverInfo:
    """Who answers."""
    return MoverInfo(name, os.getpid(), dict(_versions()), identity, os.cpu_count() or 1)


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    return (
        ("understudy", package_version()),
        ("python", platform.python_version()),
        ("kernel", platform.release()),
        ("qemu_nbd", _qemu_nbd()),
        ("libnbd", _libnbd()),
    )


def package_version() -> str:
    """The version of this program."""
    try:
        return version("understudy")
    except PackageNotFoundError:
        return "unknown"


def _libnbd() -> str:
    import nbd

    return str(nbd.NBD().get_version())


def _qemu_nbd() -> str:
    try:
        said = subprocess.run(["qemu-nbd", "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "missing"
    words = said.split()
    return words[1] if len(words) > 1 else "unknown"
