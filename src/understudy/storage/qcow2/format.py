"""What do the header and the tables of a layer file look like?

Source: docs/interop/qcow2.txt of QEMU. We write version 3 with 64 KiB clusters and 16-bit reference counts, and accept
what QEMU makes of such a file.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from understudy.errors import ReplicaError
from understudy.storage.files import datastore_errors, pwrite_all

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
SECTOR = 512
ENTRIES_PER_TABLE = CLUSTER // 8
"""L2 entries in an L2 table: one table maps 512 MiB of the disk."""
REFCOUNTS_PER_BLOCK = CLUSTER // 2
COPIED = 1 << 63
"""In L1 and L2 entries: the cluster has exactly one reference, it may be written in place."""
ZERO = 1
"""In L2 entries: the cluster reads as zeros, whether or not it has a place in the file."""
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00

_MAGIC = b"QFI\xfb"
_VERSION = 3
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_BACKING_FORMAT = 0xE2792ACA
_REFCOUNT_ORDER = 4
_NAME_SLOTS = (4096, 8192, 12288)
_NAME_MAX = 1023
_HEADER_MAX = 112
_INCOMPATIBLE_CORRUPT = 2
_AUTOCLEAR_BITMAPS = 1


@dataclass(frozen=True)
class LayerHeader:
    """The facts of a layer's header.

    :ivar size: virtual size in bytes.
    :ivar backing: name of the layer below as written in the header, or empty.
    :ivar backing_offset: where that name is.
    :ivar extensions_end: first byte after the header extensions.
    """

    size: int
    backing: str
    backing_offset: int
    extensions_end: int
    l1_offset: int
    l1_entries: int
    snapshots: int


def l1_entries(size: int) -> int:
    """L1 entries that a disk of ``size`` bytes needs."""
    return -(-size // (CLUSTER * ENTRIES_PER_TABLE))


def first_clusters(size: int) -> int:
    """Clusters that a new layer begins with: its header and its L1 table."""
    return 1 + -(-8 * l1_entries(size) // CLUSTER)


def build_header(size: int, backing: str, l1_offset: int, reftable_offset: int, reftable_clusters: int) -> bytes:
    """The first bytes of a layer file."""
    name = backing.encode()
    header = _HEADER.pack(
        _MAGIC, _VERSION, _NAME_SLOTS[0] if name else 0, len(name), CLUSTER_BITS, size, 0, l1_entries(size), l1_offset,
        reftable_offset, reftable_clusters, 0, 0, 0, 0, 0, _REFCOUNT_ORDER, _HEADER.size)
    if not name:
        return header + bytes(8)
    extension = struct.pack(">II8s", _BACKING_FORMAT, 5, b"qcow2")
    return (header + extension + bytes(8)).ljust(_NAME_SLOTS[0], b"\0") + name


def read_header(path: Path) -> LayerHeader:
    """Parse and check the header of a layer.

    :raises ReplicaError: if the file is cut, damaged, or of a kind that we do not make.
    :raises DatastoreError: if it cannot be read.
    """
    with datastore_errors(f"read layer {path}"):
        fd = os.open(path, os.O_RDONLY)
        try:
            return _parse(path, os.pread(fd, CLUSTER, 0), os.fstat(fd).st_size)
        finally:
            os.close(fd)


def _damaged(path: Path, why: str) -> ReplicaError:
    return ReplicaError(f"layer {path}", why, "use another restore point, and replicate again")


def _parse(path: Path, raw: bytes, file_bytes: int) -> LayerHeader:
    if len(raw) < CLUSTER:
        raise _damaged(path, f"cut: only {len(raw)} bytes long")
    (magic, version, backing_offset, backing_length, cluster_bits, size, encryption, l1_count, l1_offset,
     reftable_offset, reftable_clusters, snapshots, snapshots_offset, incompatible, _, autoclear, refcount_order,
     header_length) = _HEADER.unpack_from(raw)
    if magic != _MAGIC or version != _VERSION:
        raise _damaged(path, "no finished qcow2 image of version 3")
    if incompatible & _INCOMPATIBLE_CORRUPT:
        raise _damaged(path, "QEMU marked the image corrupt")
    if (cluster_bits != CLUSTER_BITS or encryption or refcount_order != _REFCOUNT_ORDER or incompatible
            or autoclear & ~_AUTOCLEAR_BITMAPS):
        raise _damaged(path, "the header asks for qcow2 features that replicas do not use")
    if header_length not in (_HEADER.size, _HEADER_MAX):
        raise _damaged(path, f"impossible header length {header_length}")
    if not size or size % SECTOR or size >= 1 << 63:
        raise _damaged(path, f"impossible virtual size {size}")
    if l1_offset % CLUSTER or not l1_offset or l1_count < l1_entries(size) or l1_offset + l1_count * 8 > file_bytes:
        raise _damaged(path, "the table of mapped clusters is not inside the file")
    reftable_end = reftable_offset + reftable_clusters * CLUSTER
    if reftable_offset % CLUSTER or not reftable_offset < reftable_end <= -(-file_bytes // CLUSTER) * CLUSTER:
        raise _damaged(path, "the table of reference counts is not inside the file")
    if snapshots_offset % CLUSTER or snapshots_offset > file_bytes:
        raise _damaged(path, "the table of snapshots is not inside the file")
    end = _extensions_end(path, raw, header_length)
    backing = _backing_name(path, raw, end, backing_offset, backing_length)
    return LayerHeader(size, backing, backing_offset, end, l1_offset, l1_count, snapshots)


def _extensions_end(path: Path, raw: bytes, position: int) -> int:
    while position + 8 <= len(raw):
        kind, length = struct.unpack_from(">II", raw, position)
        position += 8
        if kind == 0:
            return position
        position += -(-length // 8) * 8
    raise _damaged(path, "the header extensions do not end")


def _backing_name(path: Path, raw: bytes, extensions_end: int, offset: int, length: int) -> str:
    if not offset:
        return ""
    if not 0 < length <= _NAME_MAX or not extensions_end <= offset <= len(raw) - length:
        raise _damaged(path, "the name of the layer below is not inside the header")
    try:
        return raw[offset:offset + length].decode()
    except UnicodeDecodeError as exc:
        raise _damaged(path, "the name of the layer below is damaged") from exc


def layer_is_empty(path: Path) -> bool:
    """Whether nothing was ever written to the layer: no cluster is mapped and there is no internal snapshot.

    :raises ReplicaError: if the header is damaged.
    """
    header = read_header(path)
    if header.snapshots:
        return False
    with datastore_errors(f"read layer {path}"), path.open("rb") as file:
        file.seek(header.l1_offset)
        left = header.l1_entries * 8
        while left:
            piece = file.read(min(left, 1 << 20))
            if not piece:
                raise _damaged(path, "cut inside the table of mapped clusters")
            if piece.count(0) != len(piece):
                return False
            left -= len(piece)
    return True


def check_table(path: Path, header: LayerHeader) -> None:
    """Check that every L1 entry of a layer is possible; that is 8 bytes for each 512 MiB of the disk.

    :raises ReplicaError: if one is not.
    """
    with datastore_errors(f"read layer {path}"), path.open("rb", buffering=0) as file:
        used = bytearray(-(-os.fstat(file.fileno()).st_size // CLUSTER))
        for entry in _entries(os.pread(file.fileno(), header.l1_entries * 8, header.l1_offset)):
            _use(path, entry, 0, used)


def check_maps(path: Path) -> None:
    """Check that every L1 and L2 entry of a layer is possible: inside the file, no cluster used twice, no odd bits.

    :raises ReplicaError: if one is not.
    """
    header = read_header(path)
    with datastore_errors(f"read layer {path}"), path.open("rb", buffering=0) as file:
        clusters = -(-os.fstat(file.fileno()).st_size // CLUSTER)
        used = bytearray(clusters)  # 16 MiB for each TiB of the file
        for l1_entry in _entries(os.pread(file.fileno(), header.l1_entries * 8, header.l1_offset)):
            _use(path, l1_entry, 0, used)
            if l1_entry:
                for l2_entry in _entries(os.pread(file.fileno(), CLUSTER, l1_entry & OFFSET_MASK)):
                    _use(path, l2_entry, ZERO, used)


def _entries(raw: bytes) -> tuple[int, ...]:
    if raw.count(0) == len(raw):
        return ()
    return struct.unpack(f">{len(raw) // 8}Q", raw[:len(raw) // 8 * 8])


def _use(path: Path, entry: int, flags: int, used: bytearray) -> None:
    cluster, rest = divmod(entry & OFFSET_MASK, CLUSTER)
    if entry & ~(OFFSET_MASK | COPIED | flags) or rest or cluster >= len(used) or (cluster and used[cluster]):
        raise _damaged(path, f"impossible table entry {entry:#x}")
    if cluster:
        used[cluster] = 1


def rebind(path: Path, backing: str) -> None:
    """Name another layer below, of the same content, in the header; durable, and whole even after a power cut.

    The new name goes to a free place first; then the 12 bytes that point to it, all in the first sector, change at
    once.

    :raises ReplicaError: if the header is damaged or names no layer below.
    """
    header = read_header(path)
    name = backing.encode()
    if not header.backing:
        raise _damaged(path, "it has no layer below")
    old_end = header.backing_offset + len(header.backing.encode())
    slot = next((slot for slot in _NAME_SLOTS if slot >= header.extensions_end
                 and (slot >= old_end or slot + _NAME_MAX <= header.backing_offset)), None)
    if slot is None or len(name) > _NAME_MAX:
        raise _damaged(path, f"its header has no place for the name {backing}")
    with datastore_errors(f"change the header of layer {path}"):
        fd = os.open(path, os.O_RDWR)
        try:
            pwrite_all(fd, name, slot)
            os.fsync(fd)
            pwrite_all(fd, struct.pack(">QI", slot, len(name)), 8)
            os.fsync(fd)
        finally:
            os.close(fd)
