"""A lab guest on a lab host: define, start, use, shut down, remove."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import libvirt

from understudy.lab import agent
from understudy.lab.disks import DataDisk, make_disks
from understudy.lab.domain_xml import VmDisk, VmShape, domain_xml, mac_of
from understudy.lab.errors import LabError, LabTimeout
from understudy.lab.guest import GuestFiles
from understudy.lab.hosts import PLACES, LabHost
from understudy.lab.libvirt_calls import libvirt_calls
from understudy.lab.processes import ProcessIdentity

_UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class LabVm:
    """One guest; its disks are below the directory of its host."""

    def __init__(self, host: LabHost, name: str, disks: Sequence[VmDisk] = (), mac: str = "") -> None:
        """Name a domain of a host, whoever defined it (a replica, for instance); `create` makes a new one."""
        self.host = host
        self.name = name
        self.disks = tuple(disks)
        self.mac = mac

    @classmethod
    def create(
        cls,
        host: LabHost,
        name: str,
        guest: GuestFiles,
        *,
        data_disks: Sequence[DataDisk] = (),
        overlay: bool = False,
        memory_mib: int = 160,
    ) -> LabVm:
        """Make the disks of a new guest and define it on the host, not started."""
        disks = make_disks(host.directory / "images" / name, guest, data_disks, overlay=overlay)
        vm = cls(host, name, disks, mac_of(name))
        # A path that each host has for itself: a replica defined from the same XML writes another file.
        console = PLACES["log"] / "qemu" / vm._console_name
        with host.connection() as connection, libvirt_calls(f"define {name} on {host.name}"):
            connection.defineXML(domain_xml(VmShape(name, disks, vm.mac, memory_mib, console)))
        return vm

    @property
    def _console_name(self) -> str:
        return f"{self.name}-console.log"

    def console(self) -> str:
        """What the guest wrote on its serial console so far."""
        path = self.host.directory / "log" / "qemu" / self._console_name
        return path.read_text(errors="replace") if path.exists() else ""

    @contextmanager
    def domain(self) -> Iterator[libvirt.virDomain]:
        """The libvirt object of this guest, on a connection of its own; libvirt's errors become lab errors."""
        with self.host.connection() as connection, libvirt_calls(f"{self.name} on {self.host.name}"):
            yield connection.lookupByName(self.name)

    def start(self) -> None:
        """Start the guest; `wait_agent` waits until it is up."""
        with self.domain() as domain:
            domain.create()

    def is_running(self) -> bool:
        """True while the guest has a QEMU process."""
        with self.domain() as domain:
            return bool(domain.isActive())

    def pid(self) -> int:
        """The pid of the guest's QEMU process, as seen from outside the host."""
        return self.process().pid

    def process(self) -> ProcessIdentity:
        """The guest's QEMU process, safe to signal."""
        process = self.host.qemu(self.name)
        if process is None:
            raise LabError(f"{self.name} on {self.host.name}", "not running")
        return process

    def wait_agent(self, timeout_s: float = 60) -> None:
        """Wait until the guest agent answers; LabTimeout with the end of the console log when it does not."""
        with self.host.connection() as connection:
            try:
                agent.wait_agent(connection, self.name, timeout_s)
            except LabTimeout as exc:
                raise LabTimeout(exc.what, f"{exc.why}; end of its console: {self.console()[-500:]!r}") from exc

    def run(self, command: str | Sequence[str], timeout_s: float = 60) -> str:
        """Run a shell script (str) or a program (sequence) in the guest and return its stdout."""
        with self.host.connection() as connection:
            return agent.run_in_guest(connection, self.name, command, timeout_s)

    def write_file(self, path: str, content: bytes) -> None:
        """Write a file in the guest."""
        with self.host.connection() as connection:
            agent.write_guest_file(connection, self.name, path, content)

    def read_file(self, path: str) -> bytes:
        """Return the content of a file in the guest."""
        with self.host.connection() as connection:
            return agent.read_guest_file(connection, self.name, path)

    def shutdown(self, timeout_s: float = 60) -> None:
        """Ask the guest to power off, by its agent or else its power button, and wait until it has."""
        with self.domain() as domain:
            domain.shutdown()
        self.wait_off(timeout_s)

    def wait_off(self, timeout_s: float = 60) -> None:
        """Wait until the guest is off."""
        deadline = time.monotonic() + timeout_s
        while self.is_running():
            if time.monotonic() >= deadline:
                raise LabTimeout(self.name, f"still running after {timeout_s:g} s")
            time.sleep(0.05)

    def destroy(self) -> None:
        """Cut the guest's power."""
        with self.domain() as domain:
            domain.destroy()

    def undefine(self, *, delete_disks: bool = True) -> None:
        """Remove the definition of a guest that is off, with all that libvirt keeps about it, and its disks."""
        with self.domain() as domain:
            domain.undefineFlags(_UNDEFINE_ALL)
        if delete_disks:
            shutil.rmtree(self.host.directory / "images" / self.name)
