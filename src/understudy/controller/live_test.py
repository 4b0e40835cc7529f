"""The live test: every call that a session makes on a source is made on one VM, step by step, and told.

It is for hosts that nobody of us has: what a real vCenter answers, and how long it takes, comes back in its report. A
first snapshot shows where changes begin, a second one asks what has changed since. Both are removed whatever happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace

from understudy.context import Context
from understudy.errors import PlatformError, Refused, UnderstudyError
from understudy.model.exclusion import unpack
from understudy.model.inventory import Disk, Vm
from understudy.model.job import SnapshotMode
from understudy.model.live_test import Fact, LiveStep, LiveTestReport, LiveTestWish
from understudy.model.replica import Baseline
from understudy.model.snapshot import LibraryDisk, SnapshotRequest, SourceSnapshot, Tag
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms import Platform

#: Stands for a job in the names of snapshots, so that no job takes them for its own.
JOB = "live-test"

OnStep = Callable[[LiveStep], None]


class StepFailed(Exception):
    """A step failed, and is recorded; only cleaning up makes sense now."""


class Recorder:
    """Keeps the steps; ``secret`` is in none of them."""

    def __init__(self, secret: str, on_step: OnStep) -> None:
        self.steps: list[LiveStep] = []
        self._secret = secret
        self._on_step = on_step

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Fact]]:
        """Inside the context the step is made, and fills its facts.

        :raises StepFailed: if it raised an error of ours.
        """
        facts: dict[str, Fact] = {}
        started, failure = time.monotonic(), ""
        try:
            yield facts
        except UnderstudyError as exc:
            failure = str(exc)
            raise StepFailed from exc
        except BaseException as exc:
            failure = f"{type(exc).__name__}: {exc}"
            raise
        finally:
            shown = {key: self._clean(value) for key, value in facts.items()}
            step = LiveStep(name, round(time.monotonic() - started, 3), shown, str(self._clean(failure)))
            self.steps.append(step)
            self._on_step(step)

    def _clean(self, value: Fact) -> Fact:
        return value.replace(self._secret, "***") if self._secret and isinstance(value, str) else value


class LiveTest:
    """One live test.

    :param ctx: cancels it; cleaning up is done all the same.
    :param session: a number that no earlier live test of the VM had.
    """

    def __init__(
        self, ctx: Context, platform: Platform, mover: MoverClient, wish: LiveTestWish, session: int, record: Recorder
    ) -> None:
        self._ctx = ctx
        self._platform = platform
        self._mover = mover
        self._wish = wish
        self._session = session
        self._record = record

    def run(self) -> tuple[str, ...]:
        """Make all steps, or those up to the first that fails; names of the operator's things."""
        names = [self._wish.vm]
        with suppress(StepFailed):
            vm = self._look(names)
            tag = Tag(JOB, vm.uuid, self._session)
            self._sweep("leftovers of an earlier test", vm, tag)
            try:
                baseline = self._pass("first", vm, tag, None, names)
                if baseline is not None:
                    self._pass("second", vm, replace(tag, session=tag.session + 1), baseline, names)
            finally:
                self._sweep("nothing of ours is left", vm, tag)
        return tuple(names)

    def _look(self, names: list[str]) -> Vm:
        with self._record.step("host") as facts:
            found = self._platform.preflight()
            if found is None:
                raise Refused("live test", "this host is not one of VMware vSphere", "see 'understudy host list'")
            facts |= {"product": found.product, "version": found.version, "build": found.build,
                      "api_version": found.api_version, "kind": found.kind, "vms": len(found.vms)}  # fmt: skip
            names += [store.name for store in found.datastores]
        with self._record.step("VM") as facts:
            vm = self._platform.describe_vm(self._wish.vm)
            facts |= {"state": vm.state.value, "firmware": vm.firmware, "machine": vm.machine, "vcpus": vm.vcpus,
                      "memory_bytes": vm.memory_bytes, "obstacle": vm.obstacle}  # fmt: skip
            for disk in vm.disks:
                words = [f"{disk.size} bytes", disk.bus, disk.image_format, "" if disk.tracked else "cannot be tracked",
                         disk.obstacle]  # fmt: skip
                facts[f"disk {disk.name}"] = ", ".join(filter(None, words))
            if vm.obstacle or not _readable(vm):
                raise Refused(f"live test of VM {vm.name!r}", vm.obstacle or "none of its disks can be replicated",
                              "choose another VM")  # fmt: skip
        return vm

    def _sweep(self, name: str, vm: Vm, tag: Tag) -> None:
        # What was begun is undone, whether the operator waits for it or not.
        with self._record.step(name) as facts:
            done = self._platform.sweep(Context(), vm, tag)
            facts["swept"] = len(done)
            left = [trace for trace in self._platform.traces() if trace.uuid == vm.uuid]
            ours = [snapshot for trace in left for snapshot in trace.snapshots if snapshot.startswith(tag.prefix)]
            if ours:
                raise PlatformError(f"VM {vm.name!r}", f"it still has our snapshot {ours[0]}",
                                    "remove it in the vSphere client")  # fmt: skip

    def _pass(self, name: str, vm: Vm, tag: Tag, since: Baseline | None, names: list[str]) -> Baseline | None:
        disks = tuple(disk.name for disk in _readable(vm))
        request = SnapshotRequest(
            tag=tag, disks=disks, incremental=tuple(disk for disk in disks if since and since.change_id(disk)),
            since=since, checkpoint=str(tag), tracked=tuple(disk.name for disk in _readable(vm) if disk.tracked),
            scratch_dir="", quiesce=since is not None,
        )  # fmt: skip
        with ExitStack() as held:
            with self._record.step(f"{name} snapshot") as facts:
                snapshot = held.enter_context(self._platform.snapshot(self._ctx, vm, SnapshotMode.AUTO, request))
                facts |= _told(snapshot, quiesce=request.quiesce)
            try:
                for disk in snapshot.disks:
                    self._read(name, disk, tag, names)
            finally:
                with self._record.step(f"{name} snapshot removed"):
                    held.close()
        return snapshot.baseline

    def _read(self, name: str, disk: object, tag: Tag, names: list[str]) -> None:
        if not isinstance(disk, LibraryDisk):
            raise TypeError(f"{type(disk).__name__} is not read through a disk library")
        names += _file_names(disk.file)
        with self._record.step(f"{name} snapshot, disk {disk.name}: areas that changed") as facts:
            self._ctx.check()
            export = self._platform.library_export(disk)
            if export.changed is None:
                facts["asked"] = False
            else:
                areas = unpack(export.changed)
                facts |= {"asked": True, "areas": len(areas), "bytes": sum(area.length for area in areas)}
        opened: api.OpenedExport | None = None
        try:
            with self._record.step(f"{name} snapshot, disk {disk.name}: opened by the disk library"):
                opened = self._mover.call(api.OpenLibraryExport(export, str(tag)), api.OpenedExport)
            with self._record.step(f"{name} snapshot, disk {disk.name}: read") as facts:
                read = self._mover.call(api.ReadSample(opened.source, self._wish.read_bytes), api.SampleRead)
                facts |= asdict(replace(read, seconds=round(read.seconds, 3)))
        finally:
            if opened is not None:
                with self._record.step(f"{name} snapshot, disk {disk.name}: closed"):
                    self._mover.call(api.CloseExport(opened.id), api.Nothing)


def _readable(vm: Vm) -> list[Disk]:
    return [disk for disk in vm.disks if not disk.obstacle]


def _told(snapshot: SourceSnapshot, *, quiesce: bool) -> dict[str, Fact]:
    facts: dict[str, Fact] = {"disks": len(snapshot.disks)}
    if quiesce:
        facts["quiesced"] = snapshot.quiesced
    if snapshot.baseline is not None:
        facts |= {f"change id of {disk}": snapshot.baseline.change_id(disk) for disk in snapshot.baseline.disks}
    facts |= {f"disk {disk} not incremental": reason.value for disk, reason in snapshot.lost}
    return facts | {f"note {number}": note for number, note in enumerate(snapshot.notes, 1)}


def _file_names(file: str) -> list[str]:
    """The names in ``[datastore] folder/disk.vmdk``."""
    store, _, path = file.removeprefix("[").partition("] ")
    folder, _, name = path.rpartition("/")
    return [store, *folder.split("/"), name.removesuffix(".vmdk")]


def live_test(
    ctx: Context, platform: Platform, mover: MoverClient, wish: LiveTestWish, secret: str, on_step: OnStep
) -> LiveTestReport:
    """Make the live test.

    :param ctx: stops it; what it had done until then is told.
    :param secret: the password of the host's account, which is in no report.
    """
    record = Recorder(secret, on_step)
    names = LiveTest(ctx, platform, mover, wish, int(time.time()), record).run()
    return LiveTestReport(tuple(record.steps), names)
