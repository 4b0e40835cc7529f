"""The lab: two private libvirt hosts on one machine, with small real guests; leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from understudy.lab import leftovers
from understudy.lab.disks import DataDisk
from understudy.lab.errors import LabError, LabNotClean
from understudy.lab.guest import GuestFiles, build_guest
from understudy.lab.hosts import LabHost
from understudy.lab.link import LabLink
from understudy.lab.preflight import check_directory, check_machine
from understudy.lab.vm import LabVm

DEFAULT_CACHE = Path("/var/cache/understudy/lab")
SOURCE, TARGET = "alpha", "beta"


class Lab:
    """Two running hosts, `alpha` (source) and `beta` (target); a context manager that closes them.

    The lab lives at most as long as the process that opened it: when that is killed, the hosts end with it, and its
    directory is removed by the next lab that is opened.
    """

    def __init__(self, directory: Path, guest: GuestFiles, undo: ExitStack) -> None:
        """Use `Lab.open`."""
        self.directory = directory
        self.guest = guest
        self.alpha = LabHost(SOURCE, directory / SOURCE)
        self.beta = LabHost(TARGET, directory / TARGET)
        self._undo = undo
        self._link: LabLink | None = None

    @classmethod
    def open(cls, directory: Path | None = None, cache_dir: Path = DEFAULT_CACHE, *, linked: bool = False) -> Lab:
        """Check the machine, remove dead labs, build the guest if need be and start both hosts.

        The hosts have no network but their own loopback unless they are `linked`.
        Without `directory` a temporary one is made. A directory that existed before is kept at the end, without what
        the lab itself put there.
        """
        check_machine()
        with ExitStack() as undo:
            place = _prepare_directory(directory, undo)
            lab = cls(place, build_guest(cache_dir), ExitStack())
            undo.callback(lab._close_hosts)
            lab._start_hosts()
            if linked:
                lab._link = LabLink(lab.alpha, lab.beta)
            lab._undo = undo.pop_all()
        return lab

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def hosts(self) -> tuple[LabHost, LabHost]:
        """Both hosts, source first."""
        return (self.alpha, self.beta)

    @property
    def link(self) -> LabLink:
        """The cable between the hosts of a lab that was opened with `linked=True`."""
        if self._link is None:
            raise LabError("the lab's link", "this lab was opened without one", "open it with linked=True")
        return self._link

    def create_vm(
        self,
        host: LabHost,
        name: str,
        *,
        data_disks: Sequence[DataDisk] = (),
        overlay: bool = False,
        memory_mib: int = 160,
    ) -> LabVm:
        """Define a guest on a host and start it; it is up when its `wait_agent` returns."""
        vm = LabVm.create(host, name, self.guest, data_disks=data_disks, overlay=overlay, memory_mib=memory_mib)
        vm.start()
        return vm

    def close(self) -> None:
        """End all guests, both hosts and all of their processes, and remove their files; LabNotClean if some stayed."""
        self._undo.close()

    def _start_hosts(self) -> None:
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            starts = [pool.submit(host.start) for host in self.hosts]
        for start in starts:
            start.result()
        leftovers.record(self.directory, [host.namespaces.holder for host in self.hosts])

    def _close_hosts(self) -> None:
        problems: list[str] = []
        for host in self.hosts:
            try:
                host.close()
            except LabNotClean as exc:
                problems.append(str(exc))
        if problems:
            raise LabNotClean("close the lab", "; ".join(problems))


def _prepare_directory(directory: Path | None, undo: ExitStack) -> Path:
    """Make or take over the lab directory; `undo` gets what removes our things from it again."""
    if directory is None:
        parent = Path(tempfile.gettempdir()).resolve()
        leftovers.sweep_dead_labs(parent)
        place, ours = Path(tempfile.mkdtemp(prefix=leftovers.PREFIX, dir=parent)), True
    else:
        place, ours = directory.resolve(), not directory.exists()
        place.mkdir(parents=True, exist_ok=True)
    if ours:
        # The QEMU user enters it on the way to the disks of its guests.
        place.chmod(0o755)
    undo.callback(os.close, leftovers.take_lock(place))
    leftovers.end_recorded(place)
    leftovers.remove_files(place, (SOURCE, TARGET))
    undo.callback(leftovers.remove_files, place, (SOURCE, TARGET), whole=ours)
    check_directory(place)
    return place
