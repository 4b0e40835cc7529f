"""How far a session is: lines for people, from what the journal says."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.model.session import DiskReport, SessionReport, StepState, TaskReport
from understudy.units import format_seconds, format_size


@dataclass(frozen=True)
class ProgressLine:
    """What is shown for one disk, or for a VM whose disks are not known yet (``disk`` empty).

    :ivar fraction: 0 to 1.
    """

    vm: str
    disk: str
    doing: str
    fraction: float
    amount: str
    rate: str
    remaining: str


def progress_lines(report: SessionReport) -> list[ProgressLine]:
    """A line for each disk, or for a VM without known disks."""
    return [line for task in report.tasks for line in _task_lines(task)]


def _task_lines(task: TaskReport) -> list[ProgressLine]:
    doing = task.state.value if task.state.ended else current_step(task)
    if not task.disks:
        return [ProgressLine(task.vm, "", doing, 1.0 if task.state.ended else 0.0, "", "", "")]
    return [
        ProgressLine(
            task.vm, disk.name, f"waiting: {disk.waiting}" if disk.waiting else doing,
            disk.processed_bytes / disk.size if disk.size else 1.0, amount(disk), rate(disk), remaining(disk),
        )
        for disk in task.disks
    ]  # fmt: skip


def amount(disk: DiskReport) -> str:
    """How much of the disk is done."""
    return f"{format_size(disk.processed_bytes)} / {format_size(disk.size)}"


def rate(disk: DiskReport) -> str:
    """How fast it goes; empty if it does not."""
    return f"{format_size(disk.rate)}/s" if disk.eta_s is not None else ""


def remaining(disk: DiskReport) -> str:
    """How long it takes; empty if that cannot be said."""
    return format_seconds(disk.eta_s) if disk.eta_s is not None else ""


def current_step(task: TaskReport) -> str:
    """The steps of a task that run now, or its state before the first; reading, sending and writing run together."""
    running = [step.name.value for step in task.steps if step.state is StepState.RUNNING]
    doing = ", ".join(running) or task.state.value
    return f"{doing}: waiting, {task.waiting}" if task.waiting else doing


def plain_events(before: SessionReport | None, after: SessionReport) -> list[str]:
    """What happened between two reports, a line each, for output that is no terminal."""
    old = {task.vm: task for task in before.tasks} if before else {}
    events = []
    for task in after.tasks:
        events += _task_events(old.get(task.vm), task)
    return events


def _task_events(before: TaskReport | None, after: TaskReport) -> list[str]:
    known = {step.name: step.state for step in before.steps} if before else {}
    events = []
    for step in after.steps:
        if known.get(step.name) != step.state:
            took = "" if step.state is StepState.RUNNING else f" ({format_seconds(step.seconds)})"
            events.append(f"{after.vm}: {step.name.value}: {step.state.value}{took}")
    if after.state.ended and (before is None or before.state != after.state):
        events.append(f"{after.vm}: {after.state.value}")
    return events
