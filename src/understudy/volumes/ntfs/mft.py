"""The MFT: what does the volume say about a file, all its records put together?"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from understudy.model.extent import Extent
from understudy.volumes import Image, Unfit
from understudy.volumes.ntfs.boot import Boot
from understudy.volumes.ntfs.records import ATTRIBUTE_LIST, DATA, Attribute, Record, Run, number_of, parse_record

_LONGEST_LIST = 256 * 1024  # as Windows limits it
_ENTRY = struct.Struct("<IHBBQQH")


class Mft:
    """Records by number.

    :raises Unfit: if the MFT is damaged, or its copy differs.
    """

    def __init__(self, image: Image, boot: Boot) -> None:
        self._image = image
        self._boot = boot
        self._runs: list[Run] = []
        raw = image.read(boot.mft, boot.record)
        if raw != image.read(boot.mirror, boot.record):
            raise Unfit("the MFT and its copy differ")
        own = parse_record(raw, 0)
        if own is None or own.base:
            raise Unfit("the MFT is damaged")
        # Where the MFT lies in many places, its first records tell where the next ones are.
        own_data = [item for item in own.attributes if _is_data(item)]
        self._runs = [run for item in own_data for run in item.runs]
        data = joined(item for item in self.attributes(own) if _is_data(item))
        if data.resident or any(run.first is None for run in data.runs):
            raise Unfit("the MFT is damaged")
        self._runs = list(data.runs)
        self.count = data.size // boot.record

    def record(self, number: int) -> Record | None:
        """A record; None if it is not in use.

        :raises Unfit: if there is none, or it is damaged.
        """
        raw = read_runs(self._image, self._boot, self._runs, number * self._boot.record, self._boot.record)
        return parse_record(raw, number)

    def is_written(self, number: int) -> bool:
        """Whether a record was ever made; space for others stays empty."""
        return any(read_runs(self._image, self._boot, self._runs, number * self._boot.record, self._boot.record))

    def file(self, reference: int) -> Record:
        """The record that a directory's reference means.

        :raises Unfit: if it is another file's by now.
        """
        record = self.record(number_of(reference))
        if record is None or record.reference != reference or record.base:
            raise Unfit(f"the record {number_of(reference)} of the MFT is not that of the file that a directory names")
        return record

    def attributes(self, record: Record) -> tuple[Attribute, ...]:
        """All attributes of a file, also those in other records.

        :raises Unfit: if one is missing.
        """
        lists = [item for item in record.attributes if item.type == ATTRIBUTE_LIST]
        if not lists:
            return record.attributes
        if len(lists) != 1 or lists[0].size > _LONGEST_LIST:
            raise Unfit("the list of a file's attributes is damaged")
        found: list[Attribute] = []
        others = {record.reference: record}
        for kind, name, first, reference, number in _listed(self._content(lists[0])):
            if reference not in others:
                others[reference] = self._continuation(reference, record)
            same = [item for item in others[reference].attributes
                    if (item.type, item.name, item.first, item.number) == (kind, name, first, number)]  # fmt: skip
            if len(same) != 1:
                raise Unfit("an attribute of a file is missing")
            found.append(same[0])
            if record.number == 0 and _is_data(same[0]) and first == sum(run.count for run in self._runs):
                self._runs += same[0].runs
        return tuple(found)

    def _continuation(self, reference: int, base: Record) -> Record:
        record = self.record(number_of(reference))
        if record is None or record.reference != reference or record.base != base.reference:
            raise Unfit("a part of a file's attributes is missing")
        return record

    def _content(self, attribute: Attribute) -> bytes:
        if attribute.resident:
            return attribute.value
        return read_runs(self._image, self._boot, attribute.runs, 0, attribute.size)


def joined(parts: Iterable[Attribute]) -> Attribute:
    """One attribute from its parts.

    :raises Unfit: if one is missing, or the clusters are not as many as it says.
    """
    ordered = sorted(parts, key=lambda item: item.first)
    if not ordered:
        raise Unfit("a file has no data")
    head = ordered[0]
    runs: list[Run] = []
    following = 0
    for item in ordered:
        if item.first != following or (item.resident and len(ordered) > 1):
            raise Unfit("the parts of a file do not follow each other")
        runs.extend(item.runs)
        following = item.after
    return Attribute(head.type, head.name, head.flags, head.number, head.resident, head.value, tuple(runs),
                     size=head.size, allocated=head.allocated, stored=head.stored)  # fmt: skip


def extents(runs: Iterable[Run], cluster: int) -> list[Extent]:
    """Where runs lie, in bytes; holes lie nowhere."""
    return [Extent(run.first * cluster, run.count * cluster) for run in runs if run.first is not None]


def read_runs(image: Image, boot: Boot, runs: Sequence[Run], offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset`` on of what lies in ``runs``; holes are zero.

    :raises Unfit: if they end before, or lie outside the volume.
    """
    found: list[bytes] = []
    begin = 0
    for run in runs:
        size = run.count * boot.cluster
        start, end = max(offset, begin), min(offset + length, begin + size)
        if start < end:
            place = None if run.first is None else run.first * boot.cluster + start - begin
            found.append(bytes(end - start) if place is None else image.read(place, end - start))
        begin += size
        if begin >= offset + length:
            return b"".join(found)
    raise Unfit("a file of the NTFS ends too early")


def _listed(content: bytes) -> Iterator[tuple[int, str, int, int, int]]:
    """Type, name, first cluster, record and number of each attribute in a list."""
    at = 0
    while at + _ENTRY.size <= len(content):
        kind, length, name_length, name_at, first, reference, number = _ENTRY.unpack_from(content, at)
        if length < _ENTRY.size or at + length > len(content) or name_at + 2 * name_length > length:
            raise Unfit("the list of a file's attributes is damaged")
        name = content[at + name_at : at + name_at + 2 * name_length].decode("utf-16-le", errors="surrogatepass")
        yield kind, name, first, reference, number
        at += length
    if any(content[at:]):
        raise Unfit("the list of a file's attributes is damaged")


def _is_data(attribute: Attribute) -> bool:
    return attribute.type == DATA and not attribute.name
