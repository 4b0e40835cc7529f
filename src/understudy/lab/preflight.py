"""Can this machine run a lab? Everything that is missing is said at once, with what to install."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from understudy.lab.commands import SEARCH_PATH
from understudy.lab.errors import LabUnavailable
from understudy.lab.hosts import qemu_user

# Program and the Debian package that has it.
PROGRAMS = {
    "apt-get": "apt",
    "busybox": "busybox-static",
    "extlinux": "extlinux",
    "ip": "iproute2",
    "libvirtd": "libvirt-daemon-system",
    "mkfs.ext4": "e2fsprogs",
    "mkswap": "util-linux",
    "nsenter": "util-linux",
    "qemu-ga": "qemu-guest-agent",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "tc": "iproute2",
    "unshare": "util-linux",
}


def check_machine() -> None:
    """Raise LabUnavailable unless a lab can run here; changes nothing."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise LabUnavailable("start a lab", f"it needs Linux on x86_64, this is {sys.platform} on {os.uname().machine}")
    if os.geteuid() != 0:
        raise LabUnavailable("start a lab", "private namespaces and libvirtd need root", "run it as root")
    missing = {name: package for name, package in PROGRAMS.items() if shutil.which(name, path=SEARCH_PATH) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise LabUnavailable(
            "start a lab", f"missing programs: {', '.join(sorted(missing))}", f"run `apt-get install {packages}`"
        )
    qemu_user()


def check_directory(directory: Path) -> None:
    """Raise LabUnavailable unless guests can use disks below this directory."""
    for forbidden in ("/run", "/var/run", "/proc", "/sys", "/dev", "/etc", "/var/lib/libvirt"):
        if directory.is_relative_to(forbidden):
            raise LabUnavailable(str(directory), f"a lab host has its own {forbidden}", "choose another directory")
    for place in (directory, *directory.parents):
        if place.exists() and not place.stat().st_mode & 0o001:
            raise LabUnavailable(
                str(directory), f"the QEMU user cannot enter {place}", f"choose another one, or run `chmod o+x {place}`"
            )
