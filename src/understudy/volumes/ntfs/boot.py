"""The boot sector of NTFS: how large are its parts, and where does the MFT begin? Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from understudy.units import KIB, MIB
from understudy.volumes import Unfit

SECTOR = 512
_OEM = b"NTFS    "

_SECTOR_SIZES = (512, 1 * KIB, 2 * KIB, 4 * KIB)
_RECORD_SIZES = (1 * KIB, 2 * KIB, 4 * KIB)
_MOST_CLUSTER = 2 * MIB
_LARGE_CLUSTER = 0x80  # from here on, the number is the negative logarithm of the sectors of a cluster


@dataclass(frozen=True)
class Boot:
    """Sizes in bytes, ``mft`` and ``mirror`` as bytes from the volume's begin.

    :ivar clusters: whole clusters of the volume.
    """

    cluster: int
    clusters: int
    mft: int
    mirror: int
    record: int
    serial: int

    @property
    def size(self) -> int:
        """Of the part of the volume that is made of clusters; the copy of the boot sector lies behind it."""
        return self.clusters * self.cluster


def parse_boot(raw: bytes, size: int) -> Boot:
    """The boot sector ``raw`` of a volume of ``size`` bytes.

    :raises Unfit: if it is none, or says what cannot be.
    """
    if raw[3:11] != _OEM or raw[510:512] != b"\x55\xaa":
        raise Unfit("this is no NTFS")
    sector, per_cluster, reserved = struct.unpack_from("<HB7s", raw, 11)
    sectors, mft, mirror, record, serial = struct.unpack_from("<QQQb7xQ", raw, 40)
    if per_cluster > _LARGE_CLUSTER:
        per_cluster = 1 << (256 - per_cluster) if 256 - per_cluster < 32 else 0
    cluster = sector * per_cluster
    if sector not in _SECTOR_SIZES or any(reserved) or not _is_power(cluster) or cluster > _MOST_CLUSTER:
        raise Unfit("the boot sector of the NTFS makes no sense")
    length = record * cluster if record > 0 else 1 << -record if -record < 32 else 0
    clusters = sectors * sector // cluster
    if length not in _RECORD_SIZES or sectors * sector > size or not 0 < mft < clusters or not 0 < mirror < clusters:
        raise Unfit("the boot sector of the NTFS makes no sense")
    return Boot(cluster, clusters, mft * cluster, mirror * cluster, length, serial)


def _is_power(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
