"""Images of the source: which bitmaps may be removed, what can be tracked, what the record says."""

from __future__ import annotations

from dataclasses import replace

from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.replica import FileMark, ImageGeneration, SourceGeneration
from understudy.model.snapshot import Tag
from understudy.mover import api
from understudy.replication.source_images import generation, orphans, with_tracking_facts

TAG = Tag("0123456789abcdef", "uuid", 9)
OLD, KEPT, LISTED = (f"{TAG.prefix}{session}-ab" for session in (1, 2, 3))
MARK = FileMark(1, 2, 3, 4)
VM = Vm("web", "uuid", VmState.RUNNING, "", "", "", 0, 1, (), (), False, False, "")


def test_only_bitmaps_of_this_job_without_a_marker_are_orphans_and_never_the_baseline() -> None:
    other_job, other_vm = (f"{tag.prefix}1-ab" for tag in (replace(TAG, job_id="f" * 16), replace(TAG, vm_uuid="x")))
    images = {
        "vda": api.ImageFacts(True, (OLD, KEPT, LISTED), ("other-tool",)),
        "vdb": api.ImageFacts(True, (other_job, other_vm), (OLD,)),
        "vdc": api.ImageFacts(True, (KEPT,), (LISTED,)),
    }
    assert orphans(images, {LISTED, "other-tool"}, TAG, KEPT) == {OLD: ("vda", "vdb")}
    assert orphans(images, {LISTED, OLD}, TAG, "") == {KEPT: ("vda", "vdc")}


def test_a_disk_is_tracked_unless_its_image_was_seen_to_hold_no_bitmap() -> None:
    disks = [Disk(name, f"/{name}", "qcow2", 1, tracked=name != "vdd") for name in ("vda", "vdb", "vdc", "vdd")]
    images = {"vda": api.ImageFacts(True, ()), "vdb": api.ImageFacts(False, ()), "vdd": api.ImageFacts(True, ())}
    assert [disk.tracked for disk in with_tracking_facts(disks, images)] == [True, False, True, False]


def test_the_record_has_files_only_and_bitmaps_only_of_a_vm_that_is_off() -> None:
    images = {"vda": api.ImageFacts(True, ("one",), ("two",), MARK), "vdb": api.ImageFacts(True, ())}
    assert generation(VM, images) == SourceGeneration((ImageGeneration("vda", MARK),))
    off = replace(VM, state=VmState.SHUT_OFF)
    assert generation(off, images) == SourceGeneration((ImageGeneration("vda", MARK, ("one", "two")),))
    assert generation(VM, {"vdb": api.ImageFacts(True, ())}) is None
    assert generation(VM, {}) is None
