"""A datastore whose power can be cut: what was not synced is gone afterwards.

ext4 on a loop device, as a lab host sees it (see :mod:`understudy.lab.small_fs`). What the file system has not handed
to its device is not in the device's image, so a copy of the image is the disk as a power cut would leave it. The mount
options take away everything by which ext4 makes data durable without being asked: commits of the journal by the clock,
data that is written before the metadata that shows it, files that are flushed because they were renamed or truncated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from understudy.lab.commands import run
from understudy.lab.hosts import LabHost

_OPTIONS = "loop,noatime,data=writeback,noauto_da_alloc,commit=3600"


@dataclass(frozen=True)
class PowerFs:
    """A file system on a lab host, mounted there and nowhere else.

    :ivar host: the host that sees it.
    :ivar directory: where the host sees it; outside, this directory stays empty.
    :ivar journal: without one the order of changes is lost with the power, and only what was synced by name survives.
    """

    host: LabHost
    directory: Path
    image: Path
    journal: bool

    @classmethod
    def mount(cls, host: LabHost, directory: Path, size: int, *, journal: bool = True) -> PowerFs:
        """Make a file system of `size` bytes and mount it on `host` at `directory`; it is unmounted with the host."""
        image = host.directory / f"{directory.parent.name}-{directory.name}.ext4"
        with image.open("xb") as handle:
            handle.truncate(size)
        features = [] if journal else ["-O", "^has_journal"]
        # Nothing is left to a kernel thread that would go on writing to the device when everybody is done.
        run(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", *features, str(image)])
        directory.mkdir(parents=True, exist_ok=True)
        made = cls(host, directory, image, journal)
        made._mount()
        (made.outside / "lost+found").rmdir()
        host.namespaces.run(["sync", "-f", str(directory)])
        return made

    @property
    def outside(self) -> Path:
        """The path by which this machine reaches what the host sees at `directory`."""
        return self.host.outside_path(self.directory)

    def cut(self) -> None:
        """Cut the power and give it back; nobody may have a file of it open, or be writing to it."""
        after = self.image.with_suffix(".cut")
        run(["cp", "--sparse=always", str(self.image), str(after)])
        self.unmount()
        after.replace(self.image)
        if not self.journal:
            self._repair()
        self._mount()
        if not self.journal:
            # Files that have lost their names; they would fill the file system, and e2fsck deletes what it cannot copy.
            self.host.namespaces.run(["rm", "-rf", str(self.directory / "lost+found")])

    def unmount(self) -> None:
        """Unmount it; what it held stays in its image until the lab is closed."""
        self.host.namespaces.run(["umount", str(self.directory)])

    def _mount(self) -> None:
        options = _OPTIONS if self.journal else _OPTIONS.replace("data=writeback,", "").replace(",commit=3600", "")
        self.host.namespaces.run(["mount", "-o", options, str(self.image), str(self.directory)])

    def _repair(self) -> None:
        """What the administrator's boot would do; status 1 of e2fsck means that it has repaired something."""
        self.host.namespaces.run(["sh", "-c", f"e2fsck -f -y {self.image} || [ $? = 1 ]"])


