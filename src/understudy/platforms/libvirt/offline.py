"""A powered-off VM: its images lie still and are read in place; QEMU's image lock keeps it from starting meanwhile."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

from understudy.model.inventory import Vm
from understudy.model.replica import Baseline
from understudy.model.snapshot import ImageDisk, SnapshotRequest, SourceSnapshot


@contextmanager
def offline_snapshot(vm: Vm, request: SnapshotRequest) -> Iterator[SourceSnapshot]:
    """The images as they are.

    No checkpoint can be made on an inactive domain, so the baseline stays where it was: the next run sees the changes
    since then, a superset.
    """
    disks = []
    for name in request.disks:
        disk = vm.disk(name)
        bitmap = request.since_name if name in request.incremental else ""
        disks.append(ImageDisk(name=name, image=disk.path, image_format=disk.image_format, bitmap=bitmap))
    yield SourceSnapshot(
        taken_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        disks=tuple(disks),
        baseline=Baseline(request.since_name, request.incremental) if request.incremental else None,
    )
