"""Fuzz target: any bytes as one of our files. Only :class:`ReplicaError` may come out, or what the file truly says.

The first byte chooses the file. Checksums are made right where that is possible, so that what lies behind them is met.

By hand: ``python -m tests.fuzz.stored_files corpus/``; the options are those of libFuzzer (``-runs=N``, ``-seed=N``).
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # it has no stubs

with atheris.instrument_imports(include=["understudy.mover.digest", "understudy.storage"]):
    from understudy.errors import ReplicaError
    from understudy.model.exclusion import ranges_of
    from understudy.model.replica import Consistency, PointDisk, RestorePoint
    from understudy.mover.digest import (
        DIGEST_BYTES,
        HEADER_BYTES,
        DigestHeader,
        DigestReader,
        DigestWriter,
        UnfinishedDigests,
        array_checksum,
    )
    from understudy.storage.qcow2.format import CLUSTER, check_maps, layer_is_empty, read_header
    from understudy.storage.qcow2.journal import read_journal
    from understudy.storage.qcow2.manifest import parse_record, render_record
    from understudy.storage.records.exclusions import parse_exclusions, render_exclusions
    from understudy.storage.records.fields import Malformed, parse_object
    from understudy.storage.records.sealed import checksum

import xxhash

from understudy.units import KIB

PLACE = Path(tempfile.mkdtemp(prefix="understudy-fuzz-"))
FILE = PLACE / "file"
_CHECK = struct.Struct("<Q")


def one_file(data: bytes) -> None:
    """What the loaders do with it."""
    loaders: tuple[Callable[[bytes], None], ...] = (_digests, _record, _layer, _journal, _exclusions)
    loaders[data[0] % len(loaders) if data else 0](data[1:])


def _digests(data: bytes) -> None:
    header = b"USTDIGST" + struct.pack("<III", 1, 1, 64 * KIB) + data[:64]
    page = header.ljust(HEADER_BYTES - _CHECK.size, b"\0")
    FILE.write_bytes(page + _CHECK.pack(xxhash.xxh3_64_intdigest(page)) + data[64:])
    with suppress(ReplicaError), DigestReader(FILE) as reader:
        found = reader.header
        assert FILE.stat().st_size == HEADER_BYTES + found.blocks * DIGEST_BYTES
        with FILE.open("rb") as file:
            assert array_checksum(file.fileno(), found.blocks * DIGEST_BYTES) == found.checksum
        assert len(reader.read(0, found.blocks)) == found.blocks * DIGEST_BYTES
    with suppress(ReplicaError):
        UnfinishedDigests(FILE, 5 * 64 * KIB, 64 * KIB).close()
    with DigestWriter(FILE, DigestHeader("p1", 5 * 64 * KIB, 64 * KIB), keep=True) as writer:
        assert len(writer.read(0, 5)) == 5 * DIGEST_BYTES
        writer.finish()
    DigestReader(FILE).close()


def _sealed(data: bytes) -> bytes:
    try:
        document = parse_object(data)
    except Malformed:
        document = {}
    document.pop("checksum", None)
    with suppress(RecursionError, UnicodeEncodeError):
        document["checksum"] = checksum(document)
    return json.dumps(document).encode()


def _exclusions(data: bytes) -> None:
    disk = PointDisk("vda", 5 * 64 * KIB - 512, "vda-p1.qcow2", "", "vda-p1.digest", 1)
    point = RestorePoint("p1", "2026-01-01T00:00:00Z", Consistency.CRASH, 1, 64 * KIB, (disk,), excluded="p1.excluded")
    with suppress(Malformed, ReplicaError):
        found = parse_exclusions("exclusions", _sealed(data), point)
        assert all(item.end <= disk.size for exclusion in found for item in ranges_of(exclusion.packed, disk.size))
        assert parse_exclusions("exclusions", render_exclusions(point, found), point) == found


def _record(data: bytes) -> None:
    sealed = _sealed(data)
    with suppress(ReplicaError):
        found = parse_record("replica", sealed)
        assert parse_record("replica", render_record(found)) == found


def _layer(data: bytes) -> None:
    # The header as it is, and a table behind it, where a header most likely points.
    FILE.write_bytes((b"QFI\xfb\0\0\0\3" + data[:104]).ljust(CLUSTER, b"\0") + data[104:].ljust(3 * CLUSTER, b"\0"))
    for load in (read_header, layer_is_empty, check_maps):
        with suppress(ReplicaError):
            load(FILE)


def _journal(data: bytes) -> None:
    # Records from pieces of the data, each with its right checksum; the first should be JSON.
    raw, seed = b"", 0
    for body in data.split(b"\xff\xfe"):
        record = struct.pack(">I", len(body)) + body
        seed = xxhash.xxh3_64_intdigest(record, seed=seed)
        raw += record + struct.pack(">Q", seed)
    FILE.write_bytes(raw)
    found = read_journal(FILE)
    if found is not None:
        assert found.end <= len(raw)
        assert all(place % CLUSTER == 0 and place < found.clusters * CLUSTER for place in found.tables.values())
        assert all(extent.length > 0 and extent.end <= found.header.size for extent in found.complete)


def main() -> None:
    """Run until something is found, or as the options say."""
    atheris.Setup(sys.argv, one_file)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
