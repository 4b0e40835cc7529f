"""Steps 5 to 7 for all disks of a VM: start the transfers, follow them, and say what each one did."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from understudy.context import Context
from understudy.errors import PlatformError, TrackingLost, TransferError, UnderstudyError
from understudy.faults import fault_point
from understudy.model.inventory import VmState
from understudy.model.session import DiskReport
from understudy.model.snapshot import HeldDisk, ImageDisk, LibraryDisk, ServedDisk
from understudy.model.transfer import DiskPlan
from understudy.mover import api
from understudy.replication.disk_transfer import DiskTransfer, stop_works
from understudy.replication.draft import HeldDraft
from understudy.replication.held import HeldTask, Works
from understudy.replication.site import Lease, Site

_POLL_S = 0.1


def send_seconds(reports: Sequence[DiskReport]) -> float:
    """How long the disks, which are sent at the same time, spent on the network: the longest of them."""
    return max((report.seconds * report.busy.get("network", 0.0) for report in reports), default=0.0)


@dataclass(frozen=True)
class Copying:
    """What the transfers of one task need.

    :ivar held: among others the works that another controller began.
    :ivar note: told whenever the works of the transfers changed, by disk name.
    """

    held: HeldTask
    draft: HeldDraft
    note: Callable[[Mapping[str, Works]], None]


def copy_disks(ctx: Context, site: Site, copying: Copying, lease: Lease) -> tuple[DiskReport, ...]:
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
        self._exports = Exports(site, copying.held)
        stack.callback(self._exports.close_all)
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
            if obstacle and self._waiting[0].name not in self._copying.held.works:
                self._say_waiting(obstacle)
                return
            held = self._stack.enter_context(ExitStack())
            if not obstacle:
                held.callback(self._lease.give_back)
            self._start(self._waiting.pop(0), held)

    def _start(self, plan: DiskPlan, held: ExitStack) -> None:
        copying = self._copying
        works = copying.held.works.get(plan.name)
        transfer = DiskTransfer(self._site, copying.held.spec, copying.draft, plan, copying.held.excluding,
                                lambda restarted: self._exports.open(plan.name, restarted=restarted),
                                lambda: self._limits(held), works)
        self._active.append((transfer, held))
        transfer.start()
        self._note_works()

    def _limits(self, held: ExitStack) -> tuple[str, ...]:
        """The rate limits of a disk that is sent until ``held`` ends."""
        site = self._site
        if site.same_mover or site.by_socket:
            return ()
        return held.enter_context(site.resources.sending(site.source_proxy, site.target_proxy))

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
            held = self._stack.enter_context(ExitStack())
            transfer.revive(functools.partial(self._limits, held))
            self._active.append((transfer, held))

    def _note_works(self) -> None:
        transfers = [*(transfer for transfer, _ in self._active), *self._done]
        known = dict(self._copying.held.works)
        known |= {transfer.plan.name: transfer.works for transfer in transfers}
        self._copying.note({
            name: replace(works, export=self._exports.opened.get(name)) for name, works in known.items()
        })

    def stop(self, ctx: Context) -> None:
        """Stop what is under way, also what another controller began and nobody here looked at."""
        for transfer, _ in self._active:
            transfer.stop(ctx)
        for plan in self._waiting:
            stop_works(ctx, self._site, plan.name, self._copying.held.works.get(plan.name, Works()))

    def outcome(self) -> tuple[DiskReport, ...]:
        """What each disk's transfer did."""
        return tuple(transfer.report for transfer in self._done)


class Exports:
    """Where the source proxy reads the disks; images that lie still are served until :meth:`close_all`.

    :ivar opened: exports that are open, by disk name.
    """

    def __init__(self, site: Site, held: HeldTask) -> None:
        self._site = site
        self._held = held
        self._disks = {disk.name: disk for disk in held.snapshot.disks}
        self.opened = dict(held.exports)
        self.opened |= {name: works.export for name, works in held.works.items() if works.export}
        # Opened a moment ago by this same controller, and not yet read for a transfer: as good as new ones.
        self._unread = set() if held.works else set(held.exports)

    def open(self, name: str, *, restarted: bool) -> api.NbdSource:
        """Where to read the disk ``name``; may be asked again.

        A powered-off VM cannot start while its disk is served, so what was served once must be served all the time.

        :param restarted: the source proxy was restarted since, and its servers ended with it.
        :raises TransferError: if it is not certain that the disk is still as it was.
        """
        disk: HeldDisk = self._disks[name]
        if isinstance(disk, ServedDisk):
            return api.NbdSource(disk.socket, disk.export, disk.dirty_context, disk.address)
        known = self.opened.get(name)
        if known and name in self._unread and not restarted:
            self._unread.discard(name)
            return known.source
        if known and isinstance(disk, ImageDisk) and self._held.vm.state is VmState.SHUT_OFF:
            if restarted:
                why = "the source proxy was restarted, and the VM, which is off, may have run in between"
                raise TransferError(f"read disk {name!r}", why, "run the job again")
            return known.source
        if known:
            self._site.source_mover.call(api.CloseExport(known.id), api.Nothing)
            del self.opened[name]
        self.opened[name] = self._serve_library(disk) if isinstance(disk, LibraryDisk) else self._serve(disk)
        return self.opened[name].source

    def _serve_library(self, disk: LibraryDisk) -> api.OpenedExport:
        """Serve a disk through the vendor's disk library; without its changed areas if the platform lost them."""
        try:
            export = self._site.source.library_export(disk)
        except TrackingLost as exc:
            self._site.journal.warn(f"disk {disk.name}: its changed areas are not known any more: {exc.why}")
            export = self._site.source.library_export(replace(disk, since=""))
        request = api.OpenLibraryExport(export, str(self._held.request.tag))
        return self._site.source_mover.call(request, api.OpenedExport)

    def _serve(self, disk: ImageDisk) -> api.OpenedExport:
        """Serve an image; without its dirty map if only that is in the way, whoever needs one will say so."""
        request = api.OpenExport(disk.image, disk.image_format, disk.bitmap, str(self._held.request.tag))
        try:
            return self._site.source_mover.call(request, api.OpenedExport)
        except PlatformError as exc:
            if not disk.bitmap:
                raise
            opened = self._site.source_mover.call(replace(request, bitmap=""), api.OpenedExport)
            self._site.journal.warn(f"disk {disk.name}: its dirty map cannot be read: {exc.why}")
            return opened

    def close_all(self) -> None:
        """Close them; what cannot be closed must neither hide why the task ends nor keep others open."""
        for export in self.opened.values():
            try:
                self._site.source_mover.call(api.CloseExport(export.id), api.Nothing)
            except UnderstudyError as exc:
                self._site.journal.warn(f"close what was read: {exc}")
