"""Front: a vCenter for tests. The simulator answers; the front adds what it does not know, as strictly as we can read.

    with front(Inventory(vms=2), tmp_path) as vcenter:
        vcenter.place_disk("DC0_C0_RP0_VM0", raw_file)      the disk's bytes, and its capacity
        ... pyVmomi at vcenter.url, with vcenter.user and vcenter.password ...
        vcenter.write("DC0_C0_RP0_VM0", key, offset, data)  the guest writes, and changed block tracking sees it

What it adds to the simulator, and where:

- Disk contents, deltas, reverts and consolidation: `chain.py`. Files are in the datastore's folder.
- Change ids and QueryChangedDiskAreas: `tracking.py`, `changes.py`.
- What goes wrong, on demand: `vcenter.faults`, `scripted.py`.
- Guest operations, carried out in a stand-in for a guest: `guest_operations.py`.
- What the disk library's double has to know: `facts.json` in the directory of the front, `facts.py`.

Nobody has compared any of it with a real vCenter. Known to differ: a task is carried out before its call is answered;
a revert brings back disks, network cards, CPUs, memory and tracking only; a linked clone is a whole copy; a VM that is
registered again has lost its devices; `layoutEx` lists files that are gone; each delta is as large as its disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.vsphere import soap
from tests.vsphere.calls import Calls
from tests.vsphere.certificate import Certificate, make_certificate
from tests.vsphere.chain import copy_sparse, locked
from tests.vsphere.client import Client, connected
from tests.vsphere.facts import Facts, write_facts
from tests.vsphere.gateway import Gateway
from tests.vsphere.guest_operations import Guests, StandIn
from tests.vsphere.machines import RUNNING, Disk, Machine, Machines
from tests.vsphere.scripted import Faults
from tests.vsphere.shown import Shown, Tasks
from tests.vsphere.simulator import Inventory, Simulator, simulator

#: Entries in one answer of QueryChangedDiskAreas, as clients of vCenter have met them.
PAGE = 2000
#: So many VMs are known to the disk library from the start; of more, only those that somebody touches.
_FEW = 50
_SECTOR = 512


class Front:
    """A running front. A VM is named by its name or its moref, a disk by its device key."""

    def __init__(
        self, running: Simulator, client: Client, directory: Path, certificate: Certificate, page: int
    ) -> None:  # fmt: skip
        self.user, self.password = running.user, running.password
        self.directory = directory
        self.thumbprint = certificate.thumbprint
        self.datastores = {store.name: store.folder for store in running.datastores}
        self.faults = Faults()
        self._client = client
        self._machines = Machines(client, running.datastores, self._publish)
        tasks = Tasks(client)
        names = {store.moref: store.name for store in running.datastores}
        self._shown = Shown(self._machines, tasks, self.faults, names)
        self.guests = Guests(client)
        self._calls = Calls(client, self._machines, tasks, self.faults, self.guests, page)
        self._gateway = Gateway(running, certificate.server_context(), self.faults, self._handle)
        self._gateway.end_sessions = self._end_sessions
        self._gateway.transfer = self.guests.transfer
        self.port = self.guests.port = self._gateway.port
        self.url = f"https://127.0.0.1:{self.port}/sdk"
        self._morefs = {found["name"]: moref for moref, found in client.inventory(vim.VirtualMachine, "name").items()}
        for moref in self._morefs.values() if len(self._morefs) <= _FEW else []:
            self._machines.adopt(moref)
        self._publish()

    def start(self) -> None:
        """Serve clients."""
        self._gateway.start()

    def close(self) -> None:
        """End all connections, also those of clients that wait."""
        self.faults.release_all()
        self.guests.close()
        self._gateway.close()

    @property
    def calls(self) -> list[str]:
        """The methods that clients have called, in the order in which the calls came."""
        return list(self._gateway.calls)

    def cut_connections(self) -> None:
        """End all connections that clients have now; they may make new ones."""
        self._gateway.cut_connections()

    def forget_sessions(self) -> None:
        """Every client has to log in again."""
        self._gateway.expire_sessions()

    def properties(self, vm: str, *names: str) -> dict[str, Any]:
        """Properties of a VM that are set, by name; asked without any client's session."""
        with self._calls.lock:
            moref = self._machine(vm).moref
            return self._client.properties(vim.VirtualMachine(moref, self._client.stub), *names)

    def snapshots(self, vm: str) -> dict[str, str]:
        """The names of a VM's snapshots, by moref, each after the one that it stands on."""
        info, found = self.properties(vm, "snapshot").get("snapshot"), {}
        waiting = list(info.rootSnapshotList) if info else []
        while waiting:
            item = waiting.pop(0)
            found[str(item.snapshot._moId)] = str(item.name)
            waiting += item.childSnapshotList or ()
        return found

    def disks(self, vm: str) -> list[Disk]:
        """The disks of a VM, in the order of their keys."""
        machine = self._machine(vm)
        return [machine.disks[key] for key in sorted(machine.disks)]

    def place_disk(self, vm: str, raw_file: Path, key: int | None = None) -> int:
        """Give a disk (the VM's first, if no key is named) the bytes and the size of `raw_file`; returns its key.

        :raises ValueError: if the VM has snapshots or tracked disks: nobody exchanges their content unseen.
        """
        with self._calls.lock:
            machine = self._machine(vm)
            disk = machine.disks[min(machine.disks) if key is None else key]
            if machine.snapshots or disk.tracker.active:
                raise ValueError(f"{machine.name} has snapshots, or its disks are tracked")
            if raw_file.stat().st_size % _SECTOR:
                raise ValueError(f"{raw_file} is no whole number of sectors")
            with locked([disk.file]):
                copy_sparse(raw_file, disk.file)
            disk.capacity = raw_file.stat().st_size
            self._machines.settle(machine)
            return disk.key

    def write(self, vm: str, key: int, offset: int, data: bytes, *, tracked: bool = True) -> None:
        """The guest writes `data`, and changed block tracking sees it; unless it is told to lose it, as it has been
        known to do while a snapshot was merged.

        :raises ValueError: if no guest runs, or beyond the disk's end.
        """
        with self._calls.lock:
            machine = self._machine(vm)
            disk = machine.disks[key]
            if machine.power != RUNNING:
                raise ValueError(f"{machine.name} is not running, so nobody writes")
            if not 0 <= offset <= offset + len(data) <= disk.capacity:
                raise ValueError(f"{offset}+{len(data)} is beyond the end of a disk of {disk.capacity} bytes")
            with disk.file.open("r+b") as file:
                file.seek(offset)
                file.write(data)
            if tracked:
                disk.tracker.record(offset, len(data))

    def reset_tracking(self, vm: str) -> None:
        """Changed block tracking starts anew, as after a host's crash: new change ids, and the old ones are unknown."""
        with self._calls.lock:
            machine = self._machine(vm)
            for disk in machine.disks.values():
                if disk.tracker.active:
                    disk.tracker.start(complete=disk.tracker.complete)
            self._machines.settle(machine)

    def set_tools(self, vm: str, *, running: bool) -> None:
        """VMware Tools run in the guest, or do not."""
        status = "guestToolsRunning" if running else "guestToolsNotRunning"
        names = ("SET.guest.toolsRunningStatus", "SET.summary.guest.toolsRunningStatus")
        settings = [vim.option.OptionValue(key=name, value=status) for name in names]
        machine = vim.VirtualMachine(self._machine(vm).moref, self._client.stub)
        self._client.wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=settings)))

    def place_guest(self, vm: str, guest: StandIn) -> None:
        """Guest operations in the VM are carried out in this stand-in; VMware Tools run there."""
        self.guests.known[self._machine(vm).moref] = guest
        self.set_tools(vm, running=True)

    def _machine(self, vm: str) -> Machine:
        with self._calls.lock:
            if vm not in self._morefs and vm not in self._machines.known and not self._is_moref(vm):
                found = self._client.inventory(vim.VirtualMachine, "name")
                self._morefs = {properties["name"]: moref for moref, properties in found.items()}
            return self._machines.adopt(self._morefs.get(vm, vm))

    def _is_moref(self, vm: str) -> bool:
        return vm in self._morefs.values()

    def _handle(self, request: soap.Request, forward: Any) -> soap.Answer:
        return self._shown(request, self._calls.answer(request, forward))

    def _end_sessions(self, keys: list[str]) -> None:
        for key in keys:
            try:
                self._client.content.sessionManager.TerminateSession([key])
            except vim.fault.NotFound:
                continue  # it has logged out

    def _publish(self) -> None:
        facts = Facts(self.user, self.password, self.thumbprint, self._machines.facts())
        write_facts(self.directory, facts)


@contextmanager
def front(
    inventory: Inventory, directory: Path, *, page: int = PAGE,
    user: str = "administrator@vsphere.local", password: str = "of the vCenter",
) -> Iterator[Front]:  # fmt: skip
    """A vCenter with its facts and certificate in `directory`; all that it has started has ended at the end."""
    with ExitStack() as stack:
        running = stack.enter_context(simulator(inventory, user, password))
        client = stack.enter_context(connected(running.url, user, password))
        vcenter = Front(running, client, directory, make_certificate(directory), page)
        stack.callback(vcenter.close)
        vcenter.start()
        yield vcenter
