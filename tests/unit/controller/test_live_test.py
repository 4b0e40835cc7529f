"""The live test: all calls in their order, what is told of them, and that it cleans up whatever fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from understudy.context import Context
from understudy.controller.live_test import live_test
from understudy.errors import PlatformError, TransferError
from understudy.model.access import NO_LIBRARY, LibraryLogin
from understudy.model.exclusion import pack
from understudy.model.extent import Extent
from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.job import SnapshotMode
from understudy.model.live_test import LiveStep, LiveTestReport, LiveTestWish
from understudy.model.preflight import DatastoreSpace, Preflight
from understudy.model.replica import Baseline
from understudy.model.snapshot import LibraryDisk, LibraryExport, SnapshotRequest, SourceSnapshot, Tag
from understudy.model.transfer import Reason
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms import Platform, VmTraces
from understudy.units import MIB

PASSWORD = "geheim"
STORES = (DatastoreSpace("fast", "VMFS", 2, 1),)
PREFLIGHT = Preflight("vCenter", "8", "1", "8.0", "vcenter", (), False, (), (), STORES, ())
VM = Vm(
    "web", "u-1", VmState.RUNNING, "x86_64", "vmx-19", "efi", 1 << 30, 2,
    (Disk("scsi0:0", "[fast] web/web.vmdk", "vmdk", 40 * MIB, bus="pvscsi", tracked=True),
     Disk("scsi0:1", "[fast] web/rdm.vmdk", "vmdk", 1, obstacle="a raw device")),
    (), False, False, "",
)  # fmt: skip
STEPS = [
    "host", "VM", "leftovers of an earlier test",
    "first snapshot",
    "first snapshot, disk scsi0:0: areas that changed",
    "first snapshot, disk scsi0:0: opened by the disk library",
    "first snapshot, disk scsi0:0: read",
    "first snapshot, disk scsi0:0: closed",
    "first snapshot removed",
    "second snapshot",
    "second snapshot, disk scsi0:0: areas that changed",
    "second snapshot, disk scsi0:0: opened by the disk library",
    "second snapshot, disk scsi0:0: read",
    "second snapshot, disk scsi0:0: closed",
    "second snapshot removed",
    "nothing of ours is left",
]  # fmt: skip


@dataclass
class Ends:
    """A platform and a proxy that note what they are asked, and fail where they are told."""

    vm: Vm = VM
    fails: Mapping[str, Exception] = field(default_factory=dict)
    requests: list[SnapshotRequest] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    sticky: bool = False
    tracking: bool = True

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def preflight(self) -> Preflight:
        self._called("preflight")
        return PREFLIGHT

    def describe_vm(self, name: str) -> Vm:
        self._called("describe_vm")
        return self.vm

    def sweep(self, ctx: Context, vm: Vm, tag: Tag) -> list[str]:
        ctx.check()
        self._called("sweep")
        return [f"removed {name}" for name in sorted(self.held)]

    def traces(self) -> tuple[VmTraces, ...]:
        of_another = VmTraces("other", "u-2", True, (), "", (), (), snapshots=("understudy-live-test-0-1",))
        return VmTraces("web", "u-1", True, (), "", (), (), snapshots=tuple(self.held)), of_another

    @contextmanager
    def snapshot(
        self, ctx: Context, vm: Vm, mode: SnapshotMode, request: SnapshotRequest
    ) -> Iterator[SourceSnapshot]:
        self.requests.append(request)
        self._called("snapshot")
        self.held.add(str(request.tag))
        since = request.since.change_id("scsi0:0") if request.since else ""
        baseline = Baseline(str(request.tag), ("scsi0:0",), change_ids=(f"52 de/{len(self.requests)}",))
        yield SourceSnapshot(
            "t", (LibraryDisk("scsi0:0", "vm-1", "snapshot-1", "[fast] web/web-000001.vmdk", 2000, since),),
            baseline if self.tracking else None, (("scsi0:0", Reason.CBT_RESET),) if request.since else (),
            request.quiesce, ("tracking was off",),
        )  # fmt: skip
        self._called("remove")
        if not self.sticky:
            self.held.discard(str(request.tag))

    def library_export(self, disk: LibraryDisk) -> LibraryExport:
        self._called("library_export")
        changed = pack((Extent(0, MIB), Extent(2 * MIB, MIB))) if disk.since else None
        return LibraryExport(LibraryLogin("vc", "root", PASSWORD, "AB", NO_LIBRARY), disk, changed)

    def call(self, request: object, kind: type) -> Any:
        self._called(type(request).__name__)
        if isinstance(request, api.OpenLibraryExport):
            self.open.add("e-1")
            return api.OpenedExport("e-1", api.NbdSource("/run/x.nbd", "disk", ""))
        if isinstance(request, api.ReadSample):
            return api.SampleRead(40 * MIB, request.length, MIB, 0.5)
        assert isinstance(request, api.CloseExport)
        self.open.discard(request.id)
        return api.Nothing()


def played(ends: Ends, ctx: Context | None = None, *, closed: bool = True) -> tuple[LiveTestReport, list[LiveStep]]:
    seen: list[LiveStep] = []
    wish = LiveTestWish("web", read_bytes=4 * MIB)
    report = live_test(ctx or Context(), cast(Platform, ends), cast(MoverClient, ends), wish, PASSWORD, seen.append)
    assert list(report.steps) == seen
    assert closed == (not ends.open), "no export stays open"
    return report, seen


def facts(report: LiveTestReport, name: str) -> dict[str, Any]:
    return dict(next(step for step in report.steps if step.name == name).facts)


def test_every_call_of_a_session_is_made_twice_and_told() -> None:
    ends = Ends()
    report, _ = played(ends)
    assert report.ok
    assert [step.name for step in report.steps] == STEPS
    first, second = ends.requests
    assert (first.since, first.incremental, first.tracked, first.quiesce) == (None, (), ("scsi0:0",), False)
    assert (second.incremental, second.quiesce, first.disks) == (("scsi0:0",), True, ("scsi0:0",))
    assert second.since_name == str(first.tag) != str(second.tag)
    assert facts(report, "host") == {"product": "vCenter", "version": "8", "build": "1", "api_version": "8.0",
                                     "kind": "vcenter", "vms": 0}  # fmt: skip
    assert facts(report, "VM")["disk scsi0:1"] == "1 bytes, virtio, vmdk, cannot be tracked, a raw device"
    assert facts(report, "first snapshot") == {
        "disks": 1, "change id of scsi0:0": "52 de/1", "note 1": "tracking was off"}  # fmt: skip
    assert facts(report, "second snapshot") == {
        "disks": 1, "quiesced": True, "change id of scsi0:0": "52 de/2", "disk scsi0:0 not incremental": "cbt_reset",
        "note 1": "tracking was off",
    }  # fmt: skip
    assert facts(report, STEPS[4]) == {"asked": False}
    assert facts(report, STEPS[10]) == {"asked": True, "areas": 2, "bytes": 2 * MIB}
    assert facts(report, STEPS[6]) == {"size": 40 * MIB, "read_bytes": 4 * MIB, "zero_bytes": MIB, "seconds": 0.5}
    assert {"web", "fast", "web-000001"} <= set(report.names)


def test_without_a_baseline_nothing_is_asked_a_second_time() -> None:
    report, _ = played(Ends(tracking=False))
    assert report.ok
    assert [step.name for step in report.steps] == [*STEPS[:9], STEPS[-1]]


@pytest.mark.parametrize(
    ("call", "failed", "after"),
    [
        ("preflight", "host", []),
        ("describe_vm", "VM", []),
        ("sweep", STEPS[2], []),
        ("snapshot", "first snapshot", [STEPS[-1]]),
        ("library_export", STEPS[4], [STEPS[8], STEPS[-1]]),
        ("OpenLibraryExport", STEPS[5], [STEPS[8], STEPS[-1]]),
        ("ReadSample", STEPS[6], [STEPS[7], STEPS[8], STEPS[-1]]),
        ("CloseExport", STEPS[7], [STEPS[8], STEPS[-1]]),
        ("remove", STEPS[8], [STEPS[-1]]),
    ],
)
def test_after_a_step_that_failed_only_what_cleans_up_is_done(call: str, failed: str, after: list[str]) -> None:
    ends = Ends(fails={call: PlatformError("x", f"refused with {PASSWORD}")})
    report, _ = played(ends, closed=call != "CloseExport")
    names = [step.name for step in report.steps]
    assert names[names.index(failed) + 1 :] == after
    step = report.steps[names.index(failed)]
    assert step.error == "x: refused with ***"
    assert not report.ok


def test_a_cancelled_test_cleans_up_and_tells_what_it_had_done() -> None:
    ctx, ends = Context(), Ends()
    ctx.cancel.cancel()
    report, _ = played(ends, ctx)
    assert [step.name for step in report.steps] == [*STEPS[:5], STEPS[8], STEPS[-1]]
    assert report.steps[4].error == "session: cancelled by the operator"
    assert ends.held == set()


def test_a_snapshot_that_stays_is_told() -> None:
    ends = Ends(sticky=True)
    report, _ = played(ends)
    assert "it still has our snapshot understudy-live-test-" in report.steps[-1].error
    assert not report.ok


@pytest.mark.parametrize(
    ("vm", "why"),
    [
        (replace(VM, obstacle="it is a template"), "it is a template"),
        (replace(VM, disks=VM.disks[1:]), "none of its disks can be replicated"),
    ],
)
def test_a_vm_that_cannot_be_replicated_is_left_alone(vm: Vm, why: str) -> None:
    ends = Ends(vm=vm)
    report, _ = played(ends)
    assert [step.name for step in report.steps] == ["host", "VM"]
    assert why in report.steps[-1].error
    assert ends.requests == []


def test_an_error_that_nobody_foresaw_is_no_success_and_does_not_keep_it_from_cleaning_up() -> None:
    ends = Ends(fails={"ReadSample": TransferError("read", "broken"), "remove": RuntimeError("boom")})
    report, _ = played(ends)
    errors = [step.error for step in report.steps if step.error]
    assert errors[:2] == ["read: broken", "RuntimeError: boom"]
    assert "it still has our snapshot" in errors[2]
    assert ends.calls.count("sweep") == 2
