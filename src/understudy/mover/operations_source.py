"""Operations of the source side: scratch places, exports, tagged leftovers, digest copies."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

from understudy.errors import DatastoreError, Refused, UsageError
from understudy.faults import fault_point
from understudy.mover import api, images
from understudy.mover.library_probe import probe_library as probe
from understudy.mover.sample import sample
from understudy.mover.state import Mover
from understudy.units import MIB

_NVRAM_MAX = 16 * MIB


def prepare_scratch(_mover: Mover, request: api.PrepareScratch) -> api.ScratchFacts:
    """Make the scratch directory and give it to the emulator."""
    path = Path(request.directory)
    if not path.is_absolute():
        raise UsageError(f"scratch directory {path}", "it is no absolute path")
    try:
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise Refused(f"scratch directory {path}", "it is no directory", "choose another scratch directory")
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, request.uid, request.gid)
        path.chmod(0o770)
        space = os.statvfs(path)
    except OSError as exc:
        raise DatastoreError(f"scratch directory {path}", exc.strerror or str(exc)) from exc
    return api.ScratchFacts(space.f_bavail * space.f_frsize)


def probe_image(_mover: Mover, request: api.ProbeImage) -> api.ImageFacts:
    """Look at an image."""
    return images.probe_image(request)


def remove_bitmap(_mover: Mover, request: api.RemoveBitmap) -> api.Nothing:
    """Remove a bitmap of ours from an image."""
    return images.remove_bitmap(request)


def probe_library(_mover: Mover, request: api.ProbeLibrary) -> api.LibraryFacts:
    """Look for the vendor's disk library."""
    return probe(request)


def open_export(mover: Mover, request: api.OpenExport) -> api.OpenedExport:
    """Serve an image with qemu-nbd."""
    key, source = mover.exports.open(request)
    return api.OpenedExport(key, source)


def open_library_export(mover: Mover, request: api.OpenLibraryExport) -> api.OpenedExport:
    """Serve a disk through the vendor's disk library."""
    key, source = mover.exports.open_library(request)
    return api.OpenedExport(key, source)


def read_sample(mover: Mover, request: api.ReadSample) -> api.SampleRead:
    """Read pieces of an export."""
    with mover.exports.explaining(request.source):
        return sample(request)


def close_export(mover: Mover, request: api.CloseExport) -> api.Nothing:
    """End an export."""
    mover.exports.close(request.id)
    return api.Nothing()


def read_nvram(_mover: Mover, request: api.ReadNvram) -> api.NvramContent:
    """Read UEFI variables; the largest firmware has well under a MiB of them."""
    path = Path(request.path)
    what = f"UEFI variables {path}"
    try:
        with path.open("rb") as file:
            content = file.read(_NVRAM_MAX + 1)
    except FileNotFoundError:
        return api.NvramContent("")
    except OSError as exc:
        raise DatastoreError(what, exc.strerror or str(exc)) from exc
    if len(content) > _NVRAM_MAX:
        raise Refused(what, f"the file has more than {_NVRAM_MAX} bytes", "check the VM's <nvram> setting")
    return api.NvramContent(base64.b64encode(content).decode())


def end_leftovers(mover: Mover, request: api.EndLeftovers) -> api.Nothing:
    """Cancel transfers and close exports of a dead session."""
    if not request.tag:
        raise UsageError("end what a dead session left", "no tag was given")
    if request.replica_id:
        mover.works.cancel_group(request.replica_id)
    mover.exports.close_tagged(request.tag)
    return api.Nothing()


def remove_tagged(_mover: Mover, request: api.RemoveTagged) -> api.Removed:
    """Remove tagged leftovers; a directory that does not exist holds none."""
    if not request.tag:
        raise UsageError(f"remove leftovers in {request.directory}", "no tag was given")
    removed: list[str] = []
    used: set[Path] | None = None
    try:
        for path in sorted(Path(request.directory).iterdir()):
            if not path.name.startswith(request.tag) or any(keep in path.name for keep in request.keep if keep):
                continue
            if path.name.endswith(".delta"):
                used = images.files_below(request.images) if used is None else used
                if used is None or path in used:
                    continue  # somebody's snapshot lies on it, or that cannot be told
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISSOCK(mode):
                path.unlink(missing_ok=True)
                removed.append(str(path))
    except FileNotFoundError:
        return api.Removed(tuple(removed))
    except OSError as exc:
        raise DatastoreError(f"remove leftovers in {request.directory}", exc.strerror or str(exc)) from exc
    return api.Removed(tuple(removed))


def query_digests(mover: Mover, request: api.DigestRef) -> api.DigestHolding:
    """Whether the digest copy is there and intact."""
    return api.DigestHolding(mover.copies.usable(request))


def keep_digests(mover: Mover, request: api.KeepDigests) -> api.Nothing:
    """Keep the copies of a published point."""
    fault_point("mover.digests.keep")
    for disk in request.disks:
        mover.copies.keep(api.DigestRef(request.replica_id, disk, request.point), request.also)
    return api.Nothing()


def drop_digests(mover: Mover, request: api.DropDigests) -> api.Removed:
    """Remove copies."""
    return api.Removed(tuple(mover.copies.drop(request.replica_id, request.point)))
