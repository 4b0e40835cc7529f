"""How far a session is: lines for people, from what the journal says."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from understudy.model.session import DiskReport, SessionReport, StepState, TaskReport
from understudy.mover.api import Progress
from understudy.units import format_seconds, format_size

RATE_WINDOW_S = 10.0


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


class VerifyLine:
    """How far a verification is, over its last seconds: how much, at what rate, and for how long still."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def text(self, done: Progress, now: float) -> str:
        """The line at ``now``, in seconds of any clock."""
        fresh = done.processed - done.saved  # what an earlier call did says nothing of the rate
        self._samples.append((now, fresh))
        while now - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        rate = (fresh - before) / (now - then) if now > then else 0.0
        share = done.processed / done.total if done.total else 0.0
        told = [f"{share:.0%}".replace("%", " %"), f"{format_size(done.processed)} of {format_size(done.total)}"]
        if rate > 0:
            left = format_seconds((done.total - done.processed) / rate)
            told += [f"{format_size(rate)}/s", f"{left} left"]
        return ", ".join(told)


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
