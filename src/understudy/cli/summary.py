"""A session for people: its VMs, the disks that are under way, those that were; and whether its end is an error."""

from __future__ import annotations

from collections.abc import Iterable

import click

from understudy.cli.output import printable, table
from understudy.cli.progress import amount, current_step, rate, remaining
from understudy.errors import Cancelled, UnderstudyError
from understudy.model.guest import Component
from understudy.model.session import DiskReport, SessionKind, SessionReport, SessionState, TaskReport
from understudy.units import format_seconds, format_size

DISK_TITLES = ("VM", "Disk", "Mode", "Reason", "Size", "Read", "Sent", "Reduction", "Time", "Bottleneck",
               "Checked")  # fmt: skip
VM_TITLES = ("VM", "State", "Restore point", "Consistency", "Frozen")


def show_session(report: SessionReport) -> None:
    """Print the session."""
    ended = f", ended {report.ended_at}" if report.ended_at else ""
    click.echo(printable(f"Session {report.id} of job {report.job}: {report.state.value}"))
    click.echo(f"Started {report.started_at}{ended}")
    table(VM_TITLES, [_vm_row(task) for task in report.tasks])
    rows = [_disk_row(task.vm, disk) for task in report.tasks if task.state.ended for disk in task.disks]
    if rows:
        table(DISK_TITLES, rows)
    for task in report.tasks:
        if not task.state.ended:
            for line in _running_lines(task):
                click.echo(printable(line))
    for task in report.tasks:
        for line in [*_guest_lines(task), *_remarks(task)]:
            click.echo(printable(line))


def raise_if_bad(report: SessionReport) -> None:
    """Nothing for success and warning.

    :raises Cancelled: if the session was cancelled.
    :raises UnderstudyError: if it failed; says why when one VM did, else how many.
    """
    verb, again = ("estimate", "estimate") if report.kind is SessionKind.ESTIMATE else ("run", "run the job")
    what = f"{verb} job {report.job!r}"
    if report.state is SessionState.CANCELLED:
        raise Cancelled(what, f"session {report.id} was cancelled", f"{again} again when it suits")
    if report.state is not SessionState.FAILED:
        return
    failed = [task for task in report.tasks if task.state is SessionState.FAILED]
    if len(failed) == 1 and failed[0].error:
        raise UnderstudyError(what, failed[0].error)
    names = ", ".join(repr(task.vm) for task in failed)
    raise UnderstudyError(what, f"{len(failed)} of {len(report.tasks)} VMs failed ({names})",
                          f"see 'understudy session show {report.id}'")


def reduction(disk: DiskReport) -> str:
    """How much less than it read was put on the way, e.g. ``3.2x``; ``-`` when nothing was sent."""
    sent = disk.wire_bytes or disk.sent_bytes
    return f"{disk.read_bytes / sent:.1f}x" if sent else "-"


def checked(disk: DiskReport) -> str:
    """How many blocks that tracking calls unchanged were compared, e.g. ``16, 3 changed``; ``-`` when none were."""
    if not disk.checked_blocks:
        return "-"
    return f"{disk.checked_blocks}" + (f", {disk.mismatched_blocks} changed" if disk.mismatched_blocks else "")


def _vm_row(task: TaskReport) -> tuple[str, ...]:
    frozen = "-" if task.frozen_ms is None else f"{task.frozen_ms:.0f} ms"
    return task.vm, task.state.value, task.restore_point or "-", task.consistency or "-", frozen


def _disk_row(vm: str, disk: DiskReport) -> tuple[str, ...]:
    return (
        vm,
        disk.name,
        disk.mode.value,
        disk.reason.value or "-",
        format_size(disk.size),
        format_size(disk.read_bytes),
        format_size(disk.wire_bytes or disk.sent_bytes),
        reduction(disk),
        format_seconds(disk.seconds),
        disk.bottleneck or "-",
        checked(disk),
    )


def _running_lines(task: TaskReport) -> list[str]:
    lines = [f"{task.vm}: {current_step(task)}"]
    for disk in task.disks:
        left = remaining(disk)
        wire = f"{format_size(disk.wire_bytes)} on the wire" if disk.wire_bytes else ""
        facts = [amount(disk), rate(disk), left and f"{left} left", wire, disk.transport.value, busy_shares(disk)]
        lines.append(f"{task.vm}: disk {disk.name}: {', '.join(filter(None, facts))}")
        if disk.waiting:
            lines.append(f"{task.vm}: disk {disk.name} waits: {disk.waiting}")
    return lines


def busy_shares(disk: DiskReport) -> str:
    """Who was busy, the busiest first, e.g. ``source 61 %, network 20 %``; parts below 1 % are left out."""
    parts = sorted(disk.busy.items(), key=lambda item: -item[1])
    return ", ".join(f"{name.replace('_', ' ')} {share:.0%}".replace("%", " %") for name, share in parts
                     if share >= 0.01)  # fmt: skip


def _guest_lines(task: TaskReport) -> list[str]:
    """What guest processing did: how the guest was reached, each stage's time, each application."""
    guest = task.guest
    if guest is None:
        return []
    notes = [f"{task.vm}: guest: {note}" for note in guest.notes]
    if not guest.transport:
        return notes
    by = {Component.RUNTIME: "runtime component", Component.AGENT: "persistent agent", Component.NONE: "fsfreeze alone"}
    stages = ", ".join(f"{stage.name.replace('_', ' ')} {stage.ms:.0f} ms" for stage in guest.stages)
    lines = [f"{task.vm}: guest by {guest.transport}, {by[guest.component]}" + (f": {stages}" if stages else "")]
    for item in guest.applications:
        detail = f" ({item.detail})" if item.detail else ""
        lines.append(f"{task.vm}: {item.kind} {item.name}: {item.state.value}{detail}")
    return [*lines, *notes]


def _remarks(task: TaskReport) -> list[str]:
    remarks = [remark for disk in task.disks for remark in _disk_remarks(task.vm, disk)] if task.state.ended else []
    remarks += [f"warning: {task.vm}: {warning}" for warning in task.warnings]
    return [*remarks, f"failed: {task.vm}: {task.error}"] if task.error else remarks


def _disk_remarks(vm: str, disk: DiskReport) -> list[str]:
    remarks = []
    if disk.excluded:
        parts = ", ".join(f"{reason} {format_size(count)}" for reason, count in disk.excluded.items())
        remarks.append(f"{vm}: disk {disk.name}: left out: {parts}")
    remarks += disk_notes(vm, disk.name, disk.notes)
    if disk.resumed_bytes:
        saved = format_size(disk.resumed_bytes)
        remarks.append(f"{vm}: disk {disk.name}: {saved} were there already from an earlier session")
    if disk.reconnects:
        times = "once" if disk.reconnects == 1 else f"{disk.reconnects} times"
        remarks.append(f"{vm}: disk {disk.name}: lost connections were made again {times}")
    return remarks


def disk_notes(vm: str, disk: str, notes: Iterable[str]) -> list[str]:
    """What is not left out of a disk, and why; notes of one volume begin with its place."""
    return [f"{vm}: {note}" if note.startswith((f"disk {disk}", "logical volume ", "LVM"))
            else f"{vm}: disk {disk}: {note}" for note in notes]
