"""Settings: how often, which rows, how large."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from understudy.units import GIB


@dataclass(frozen=True)
class Settings:
    """What the command line asked for; sizes in bytes.

    :ivar only: names of the wanted rows, with ``*`` for any characters; empty for all.
    :ivar size: data of the rows that copy one image.
    :ivar vm_disk: virtual size of the VM's data disk.
    :ivar vm_data: data in it.
    :ivar huge_disk: virtual size of the disk that is nearly empty.
    :ivar huge_data: data in it.
    :ivar huge_changes: changed pieces of 64 KiB in it, where planning alone is measured.
    :ivar volume_files: files of the volumes that are surveyed; ``many_files`` of the one with very many.
    :ivar vms: of the simulated vCenter whose VMs are listed.
    """

    runs: int = 5
    only: tuple[str, ...] = ()
    size: int = 2 * GIB
    vm_disk: int = 6 * GIB
    vm_data: int = 2 * GIB
    huge_disk: int = 10 << 40
    huge_data: int = GIB
    huge_changes: int = 100_000
    volume_files: int = 20_000
    many_files: int = 1_000_000
    vms: int = 10_000

    def wants(self, *names: str) -> bool:
        """Whether one of the rows is wanted."""
        return not self.only or any(fnmatchcase(name, wanted) for name in names for wanted in self.only)

    def facts(self) -> dict[str, object]:
        """The settings as they go into the result."""
        return asdict(self)
