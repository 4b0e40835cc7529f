"""Steps 5 to 7 for all disks of a VM: start the transfers, follow them, and say what each one did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from understudy.context import Context
from understudy.errors import TransferError
from understudy.faults import fault_point
from understudy.model.inventory import VmState
from understudy.model.session import DiskReport
from understudy.model.snapshot import ImageDisk, ServedDisk
from understudy.model.transfer import DiskPlan
from understudy.mover import api
from understudy.replication.disk_transfer import DiskTransfer
from understudy.replication.draft import HeldDraft
from understudy.replication.held import HeldTask, Works
from understudy.replication.site import Lease, Site

_POLL_S = 0.1


@dataclass(frozen=True)
class Transferred:
    """A disk transfer that succeeded, with the busy seconds of the source side's parts."""

    report: DiskReport
    busy: dict[str, float]


def send_seconds(transfers: Sequence[Transferred]) -> float:
    """Seconds in which sending waited, over all disks."""
    return sum(transfer.busy.get("network", 0.0) for transfer in transfers)


@dataclass(frozen=True)
class Copying:
    """What the transfers of one task need.

    :ivar held: among others the works that another controller began.
    :ivar note: told whenever the works of the transfers changed, by disk name.
    """

    held: HeldTask
    draft: HeldDraft
    note: Callable[[Mapping[str, Works]], None]


def copy_disks(ctx: Context, site: Site, copying: Copying, lease: Lease) -> tuple[Transferred, ...]:
    """Transfer every disk, as many at a time as the lease gives; returns when all are durable on the target.

    :raises UnderstudyError: of the first disk that fails, after all others were stopped.
    """
    with ExitStack() as stack:
        transfers = _Transfers(site, copying, lease, stack)
        try:
            while not transfers.ended:
                transfers.start_more()
                ctx.check()
                transfers.follow(ctx)
        except BaseException:
            transfers.stop(ctx)
            raise
        return transfers.outcome()


class _Transfers:
    """The transfers of one task: those that wait for a slot, those under way, those that ended."""

    def __init__(self, site: Site, copying: Copying, lease: Lease, stack: ExitStack) -> None:
        self._site = site
        self._copying = copying
        self._lease = lease
        self._exports = _Exports(site, copying.held, stack)
        self._stack = stack
        # What another controller began goes on first: it is under way, slots or not.
        self._waiting = sorted(copying.held.plans, key=lambda plan: plan.name not in copying.held.works)
        self._active: list[tuple[DiskTransfer, ExitStack]] = []
        self._done: list[DiskTransfer] = []

    @property
    def ended(self) -> bool:
        """Whether every disk is durable on the target."""
        return not self._waiting and not self._active

    def start_more(self) -> None:
        """Start what may start now; what waits says why."""
        while self._waiting:
            obstacle = self._lease.take()
            if obstacle:
                self._say_waiting(obstacle)
                return
            held = self._stack.enter_context(ExitStack())
            held.callback(self._lease.give_back)
            self._start(self._waiting.pop(0), held)

    def _start(self, plan: DiskPlan, held: ExitStack) -> None:
        site, copying = self._site, self._copying
        limits: tuple[str, ...] = ()
        if not site.same_mover and not site.by_socket:
            limits = held.enter_context(site.resources.sending(site.source_proxy, site.target_proxy))
        transfer = DiskTransfer(site, copying.held.spec, copying.draft, plan, lambda: self._exports.open(plan.name),
                                limits, copying.held.works.get(plan.name))
        self._active.append((transfer, held))
        transfer.begin()
        self._note_works()

    def _say_waiting(self, obstacle: str) -> None:
        for plan in self._waiting:
            report = DiskReport(plan.name, plan.mode, plan.reason, plan.size, transport=self._site.transport)
            self._site.journal.disk(replace(report, waiting=obstacle), final=False)

    def follow(self, ctx: Context) -> None:
        """Look at each transfer once, waiting a moment in all; a failed one raises."""
        if not self._active:
            ctx.cancel.wait(_POLL_S)
        for transfer, held in list(self._active):
            before = transfer.works
            transfer.follow(_POLL_S / len(self._active))
            if transfer.works != before:
                self._note_works()
            if transfer.report.processed_bytes:
                fault_point("read.middle")
            if transfer.ended:
                self._active.remove((transfer, held))
                self._done.append(transfer)
                held.close()
        self._revive()

    def _revive(self) -> None:
        """A draft that was opened again does not know that a disk was complete: its last part must come again."""
        for transfer in [transfer for transfer in self._done if transfer.outdated]:
            self._done.remove(transfer)
            transfer.ended = False
            self._active.append((transfer, self._stack.enter_context(ExitStack())))

    def _note_works(self) -> None:
        transfers = [*(transfer for transfer, _ in self._active), *self._done]
        exports = self._exports.ids
        self._copying.note({
            transfer.plan.name: replace(transfer.works, export=exports.get(transfer.plan.name, ""))
            for transfer in transfers
        })

    def stop(self, ctx: Context) -> None:
        """Stop what is under way."""
        for transfer, _ in self._active:
            transfer.stop(ctx)

    def outcome(self) -> tuple[Transferred, ...]:
        """What each disk's transfer did."""
        return tuple(Transferred(transfer.report, transfer.busy) for transfer in self._done)


class _Exports:
    """Where the source proxy reads the disks; images that lie still are served while the context lasts.

    :ivar ids: exports that are open, by disk name.
    """

    def __init__(self, site: Site, held: HeldTask, stack: ExitStack) -> None:
        self._site = site
        self._held = held
        self._disks = {disk.name: disk for disk in held.snapshot.disks}
        self.ids = {name: works.export for name, works in held.works.items() if works.export}
        stack.callback(self._close)

    def open(self, name: str) -> api.NbdSource:
        """Where to read the disk ``name``; asked again when the source proxy was restarted, and its server with it.

        :raises TransferError: if it is not certain that the disk is still as it was.
        """
        disk: ServedDisk | ImageDisk = self._disks[name]
        if isinstance(disk, ServedDisk):
            return api.NbdSource(disk.socket, disk.export, disk.dirty_context, disk.address)
        if self.ids.pop(name, "") and self._held.vm.state is VmState.SHUT_OFF:
            why = "the source proxy was restarted, and the VM, which is off, may have run in between"
            raise TransferError(f"read disk {name!r}", why, "run the job again")
        request = api.OpenExport(disk.image, disk.image_format, disk.bitmap, str(self._held.request.tag))
        opened = self._site.source_mover.call(request, api.OpenedExport)
        self.ids[name] = opened.id
        return opened.source

    def _close(self) -> None:
        for export in self.ids.values():
            self._site.source_mover.call(api.CloseExport(export), api.Nothing)
