"""Where does the guest's kernel come from? Debian's cloud kernel, unpacked, never installed.

A kernel package's installation scripts would rebuild the boot loader of this machine, so the package is only
downloaded (`apt-get download`) and unpacked (`dpkg -x`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from understudy.lab.commands import run
from understudy.lab.errors import CommandFailed, LabUnavailable

META_PACKAGE = "linux-image-cloud-amd64"
# ext4 is built into this kernel; these are modules of it.
_DISK_MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "vmw_pvscsi")
_OTHER_MODULES = ("virtio_console", "virtio_net", "vmxnet3", "button", "evdev")
WANTED_MODULES = (*_DISK_MODULES, *_OTHER_MODULES)
XFS_MODULES = ("xfs",)

_MODULE_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


@dataclass(frozen=True)
class KernelPackage:
    """One exact Debian kernel package."""

    name: str
    version: str

    @property
    def release(self) -> str:
        """What `uname -r` says when this kernel runs."""
        return self.name.removeprefix("linux-image-")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its boot image and the module files to load, in loading order; and those for XFS."""

    image: Path
    modules: tuple[Path, ...]
    xfs_modules: tuple[Path, ...]


def newest_kernel() -> KernelPackage:
    """The kernel that Debian's package lists on this machine call current; needs no network."""
    try:
        listing = run(["apt-cache", "show", "--no-all-versions", META_PACKAGE])
    except CommandFailed as exc:
        raise LabUnavailable(META_PACKAGE, "apt does not know this package", "run `apt-get update`") from exc
    name = re.search(r"^Depends: (linux-image-\S+-cloud-amd64)", listing, re.MULTILINE)
    version = re.search(r"^Version: (\S+)$", listing, re.MULTILINE)
    if name is None or version is None:
        raise LabUnavailable(META_PACKAGE, "apt names no kernel for this package", "run `apt-get update`")
    return KernelPackage(name=name.group(1), version=version.group(1))


def unpack_kernel(package: KernelPackage, work_dir: Path) -> Kernel:
    """Download the package and unpack it below work_dir."""
    # The unprivileged user that apt downloads with cannot write to a private directory of root.
    run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package.name], cwd=work_dir, timeout_s=600)
    packages = sorted(work_dir.glob(f"{package.name}_*.deb"))
    if len(packages) != 1:
        raise LabUnavailable(f"apt-get download {package.name}", f"expected one package file, found {len(packages)}")
    tree = work_dir / "kernel"
    run(["dpkg", "-x", str(packages[0]), str(tree)])
    image = tree / "boot" / f"vmlinuz-{package.release}"
    return Kernel(image, modules_in_order(tree, WANTED_MODULES), modules_in_order(tree, XFS_MODULES))


def modules_in_order(tree: Path, wanted: tuple[str, ...]) -> tuple[Path, ...]:
    """The wanted modules and all that they depend on, each after its dependencies.

    A wanted module without a file is taken as built in; the guest's start would show if that were wrong.
    """
    files = {path.name.split(".")[0].replace("-", "_"): path for path in tree.rglob("*.ko")}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        path = files.get(name)
        if path is None or name in ordered:
            return
        for dependency in module_dependencies(path):
            add(dependency)
        ordered[name] = path

    for name in wanted:
        add(name)
    return tuple(ordered.values())


def module_dependencies(module: Path) -> list[str]:
    """Names of the modules that a module file says it needs."""
    # The package has no modules.dep (depmod runs at installation), but each module carries its own list.
    found = _MODULE_DEPENDS.search(module.read_bytes())
    if found is None or not found.group(1):
        return []
    return [name.replace("-", "_") for name in found.group(1).decode("ascii").split(",")]
