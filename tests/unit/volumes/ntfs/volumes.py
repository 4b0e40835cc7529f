"""NTFS volumes made by mkntfs and ntfs-3g, what ntfsprogs say of them, and changes that only Windows makes."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.unit.volumes.hives import hive
from tests.unit.volumes.whole_images import empty, patched, run
from understudy.model.extent import Extent, merge
from understudy.units import MIB

SIZE, CLUSTER, RECORD = 40 * MIB, 4096, 1024
LABEL = "System"
VSS = bytes.fromhex("6b87083876c1484eb7ae04046e6cc752")

#: Identities of the partitions that Windows knows as C: and D:.
C_DRIVE, D_DRIVE = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-aaaaaaaaaaaa"

#: Run inside a mount namespace of its own, with the mounted volume as the first argument, and its registry as the
#: second: a page file in many places, and a file whose pieces need a list of attributes.
_FILL = """
import os, random, struct, sys
from pathlib import Path
top, chance = Path(sys.argv[1]), random.Random(7)
for name in ("Cache/deep/er", "Keep/deep", "Windows/System32/drivers/etc", "System Volume Information", "Cache/packed",
             "Windows/System32/config", "Windows/Temp"):
    (top / name).mkdir(parents=True)
os.setxattr(top / "Cache/packed", "system.ntfs_attrib_be", struct.pack(">I", 0x800))
(top / "fill").mkdir()
for number in range(2400):
    (top / f"fill/{number}").write_bytes(chance.randbytes(4096))
free = os.statvfs(top)
(top / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - 500_000))
for number in range(0, 2400, 2):
    (top / f"fill/{number}").unlink()
(top / "pagefile.sys").write_bytes(chance.randbytes(4 * 1024 * 1024))
(top / "ballast").unlink()
(top / "swapfile.sys").write_bytes(chance.randbytes(300_000))
(top / "hiberfil.sys").write_bytes(bytes(200_000))
(top / "Windows/System32/drivers/etc/hosts").write_bytes(b"# hosts")
(top / "Windows/System32/config/SYSTEM").write_bytes(Path(sys.argv[2]).read_bytes())
(top / "Windows/Temp/a.tmp").write_bytes(chance.randbytes(300_000))
(top / "System Volume Information/tracking.bin").write_bytes(chance.randbytes(30_000))
for number in range(40):
    for name in ("Keep/deep", "Cache", "Cache/deep/er"):
        (top / name / f"a file of number {number}.bin").write_bytes(chance.randbytes(chance.randrange(30_000)))
(top / "Cache/packed/c.bin").write_bytes((b"a" * 65_000 + chance.randbytes(60_000)) * 4)
with (top / "Cache/holes.bin").open("wb") as handle:
    handle.seek(1_000_000)
    handle.write(chance.randbytes(20_000))
with (top / "Cache/pieces.bin").open("wb") as handle:
    for number in range(700):
        handle.seek(number * 65_536)
        handle.write(chance.randbytes(4096))
        handle.flush()
(top / "Cache/small.txt").write_bytes(b"in the record")
(top / "Cache/\\u00dcber LONG.Txt").write_bytes(chance.randbytes(9_000))
os.setxattr(top / "Cache/\\u00dcber LONG.Txt", "system.ntfs_dos_name", b"UBERLO~1.TXT")
(top / "Cache/twice.bin").write_bytes(chance.randbytes(20_000))
(top / "Keep/twice.bin").hardlink_to(top / "Cache/twice.bin")
(top / "Cache/stream.bin").write_bytes(chance.randbytes(20_000))
(top / "Cache/stream.bin:other").write_bytes(chance.randbytes(20_000))
(top / "Cache/cloud.bin").write_bytes(chance.randbytes(20_000))
os.setxattr(top / "Cache/cloud.bin", "system.ntfs_reparse_data", struct.pack("<IHH", 0x80000017, 8, 0) + bytes(8))
"""
_MOUNT = """
mount -t tmpfs none {place} && mkdir {place}/at \\
    && ntfs-3g -o compression,streams_interface=windows {image} {place}/at \\
    && {python} -c "$0" {place}/at {registry}; state=$?; umount {place}/at; exit $state
"""


def can_mount() -> bool:
    """Whether a volume can be filled: FUSE, and a mount namespace for it."""
    return os.geteuid() == 0 and Path("/dev/fuse").exists()


def make_volume(place: Path) -> Path:
    """A volume with files of all kinds."""
    image = empty(place / "ntfs", SIZE)
    run("mkntfs", "-F", "-q", "-f", "-L", LABEL, "-c", str(CLUSTER), image)
    at = place / "mounted"
    at.mkdir()
    registry = place / "SYSTEM"
    letters = {f"\\DosDevices\\{letter}:": b"DMIO:ID:" + uuid.UUID(identity).bytes_le
               for letter, identity in (("C", C_DRIVE), ("D", D_DRIVE))}
    registry.write_bytes(hive({"MountedDevices": letters}))
    script = _MOUNT.format(place=at, image=image, python=sys.executable, registry=registry)
    run("unshare", "--mount", "sh", "-c", script, _FILL)
    return image


def places(image: Path, path: str) -> list[Extent]:
    """Where ntfsinfo says that the data of a file lies."""
    out = run("ntfsinfo", "-f", "-v", "-F", path, image)
    parts = out.split("Dumping attribute ")[1:]
    data = [part for part in parts if part.startswith("$DATA") and "Name length:\t\t 0" in part]
    found = [re.findall(r"^\s*0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s*$", part, re.MULTILINE) for part in data]
    runs = [(int(first, 16), int(count, 16)) for part in found for first, count in part]
    return merge(
        sorted((Extent(first * CLUSTER, count * CLUSTER) for first, count in runs), key=lambda item: item.start)
    )


def names(image: Path) -> list[str]:
    """All files, of which those with data streams can be read by :func:`digest`."""
    out = run("ntfsls", "-f", "-R", "-F", "-p", "/", image)
    found: list[str] = []
    directory = ""
    for line in out.splitlines():
        if line.endswith(":"):
            directory = line[:-1].rstrip("/")
        elif line.strip() and not line.endswith("/"):
            found.append(f"{directory}/{line.strip()}")
    return found


def digest(image: Path, path: str) -> str:
    done = subprocess.run(["ntfscat", "-f", image, path], capture_output=True, check=True, timeout=60)
    return hashlib.sha256(done.stdout).hexdigest()


def record_at(data: bytes, name: str) -> int:
    """Where the record of a file lies, by its name."""
    text = bytes([len(name)]), name.encode("utf-16-le")
    for at in range(0, len(data), RECORD):
        if data[at : at + 4] == b"FILE" and data[at + 22] & 1:
            for kind, place in _attributes(data, at):
                value = data[place + 24 : place + 24 + 600]
                if kind == 0x30 and (value[64:65], value[66 : 66 + 2 * len(name)]) == text:
                    return at
    raise AssertionError(name)


def attribute_at(data: bytes, record: int, kind: int) -> int:
    """Where the first attribute of a type lies in a record."""
    return next(place for found, place in _attributes(data, record) if found == kind)


def _attributes(data: bytes, record: int) -> Iterator[tuple[int, int]]:
    """Types and places of the attributes in a record."""
    at = record + int.from_bytes(data[record + 20 : record + 22], "little")
    while at < record + RECORD - 8:
        kind, length = struct.unpack_from("<II", data, at)
        if kind == 0xFFFFFFFF or not length:
            return
        yield kind, at
        at += length


def with_log(data: bytes, flags: int, second: int | None = None) -> bytes:
    """With restart pages in $LogFile, as Windows writes them when it unmounts (flag 2) or mounts a volume."""
    at = attribute_at(data, record_at(data, "$LogFile"), 0x80)
    first = first_cluster(data, at) * CLUSTER
    return patched(data, (first, _page(flags)), (first + 4096, _page(flags if second is None else second)))


def _page(flags: int) -> bytes:
    """A restart page with its marks."""
    area = struct.pack("<QHHHHI", 1000, 1, 0xFFFF, 0, flags, 0)
    page = bytearray(patched(bytes(4096), (0, struct.pack("<4sHHQIIHHH", b"RSTR", 30, 9, 0, 4096, 4096, 64, 1, 1)),
                             (64, area)))  # fmt: skip
    page[30:32] = b"\x07\x00"
    for sector in range(8):
        page[sector * 512 + 510 : sector * 512 + 512] = b"\x07\x00"
    return bytes(page)


def first_cluster(data: bytes, attribute: int) -> int:
    """Of an attribute that does not lie in its record."""
    at = attribute + int.from_bytes(data[attribute + 32 : attribute + 34], "little")
    counts, firsts = data[at] & 15, data[at] >> 4
    return int.from_bytes(data[at + 1 + counts : at + 1 + counts + firsts], "little", signed=True)


def with_first_cluster(data: bytes, attribute: int, cluster: int) -> bytes:
    """With another first cluster of an attribute, whose number takes as many bytes as before."""
    at = attribute + int.from_bytes(data[attribute + 32 : attribute + 34], "little")
    counts, firsts = data[at] & 15, data[at] >> 4
    return patched(data, (at + 1 + counts, cluster.to_bytes(firsts, "little", signed=True)))
