"""The peer of the job rows: virtnbdbackup and virtnbdrestore, whole commands inside the VM's host.

Both are needed for a copy that boots. Options are the defaults (stream format, no compression) but for places: all
files lie in memory, as ours do.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.tools import timed
from bench.twins import data_image
from understudy.lab.errors import CommandFailed
from understudy.lab.hosts import LabHost
from understudy.lab.vm import LabVm

TIMEOUT_S = 900
RESTORE_ATTEMPTS = 5


class BackupPeer:
    """A chain of backups of one VM, and a restored copy of it.

    :ivar failed_restores: how many restores failed and were repeated.
    """

    def __init__(self, host: LabHost, vm: LabVm, place: Path) -> None:
        self._host = host
        self._vm = vm
        self._place = place
        self._chain = place / "backup"
        self._restored = place / "restored"
        self.failed_restores = 0
        place.mkdir()
        # The hypervisor's user makes the socket here; by default it is in /var/tmp.
        place.chmod(0o1777)

    @property
    def image(self) -> Path:
        """The restored data disk."""
        return self._restored / data_image(self._vm).name

    def backup(self, level: str) -> float:
        """Seconds of a backup, ``full`` or ``inc``."""
        return self._timed("virtnbdbackup", "-n", "-d", self._vm.name, "-l", level, "-o", str(self._chain),
                           "-S", str(self._place / "scratch"), "-f", str(self._place / "socket"))  # fmt: skip

    def restore(self) -> float:
        """Seconds of a restore of the whole chain into a new directory.

        virtnbdrestore serves one disk after another at the same socket; on a busy machine the server of the first disk
        removes the socket of the second one at times, and the restore fails. Then it is repeated, and only the attempt
        that succeeds counts.
        """
        for _ in range(RESTORE_ATTEMPTS - 1):
            try:
                return self._restore()
            except CommandFailed:
                self.failed_restores += 1
        return self._restore()

    def _restore(self) -> float:
        self.drop_restored()
        return self._timed("virtnbdrestore", "-n", "-i", str(self._chain), "-o", str(self._restored),
                           "-f", str(self._place / "socket"), "-L", str(self._place / "restore.log"))  # fmt: skip

    def drop_restored(self) -> None:
        """Remove the restored copy."""
        shutil.rmtree(self._restored, ignore_errors=True)

    def drop(self) -> None:
        """Remove all files; checkpoints are the VM's and stay."""
        self.drop_restored()
        shutil.rmtree(self._chain, ignore_errors=True)

    def _timed(self, *command: str) -> float:
        return timed(lambda: self._host.namespaces.run(command, TIMEOUT_S))
