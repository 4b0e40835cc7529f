"""What happens in the next round of a soak? Drawn by dice alone, so that a seed tells the whole story. Pure."""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass

#: A part, 64 KiB, is what writes are counted in; a data disk has this many.
DISK_PARTS = 512
_FILES = 8


class Writing(enum.StrEnum):
    """How the guest writes."""

    RANDOM = "random data"
    ZERO = "zeros over data"
    TRIM = "trim"
    FILE = "file"
    ZERO_FILE = "file of zeros"
    REMOVE = "file removed and trimmed"
    SWAP = "pages of a swap file"


class Fault(enum.StrEnum):
    """What goes wrong in a round."""

    NONE = "none"
    KILL_POINT = "process killed at a fault point"
    ERROR_POINT = "error at a fault point"
    KILL_QEMU = "QEMU killed"
    RESTART_LIBVIRTD = "libvirtd restarted"
    POWER_OFF = "VM powered off"
    DELETE_CHECKPOINT = "checkpoint deleted"
    DELETE_DIGESTS = "digest copies deleted"
    FLIP_DIGEST = "digest file flipped"

    @property
    def may_fail(self) -> bool:
        """Whether the session may fail because of it; lost tracking and lost digests cost a scan and no failure."""
        return self in (Fault.KILL_POINT, Fault.ERROR_POINT, Fault.KILL_QEMU, Fault.RESTART_LIBVIRTD, Fault.POWER_OFF)


class Before(enum.StrEnum):
    """What the operator does before the session."""

    NOTHING = "nothing"
    VERIFY = "verify"
    FAILOVER = "failover and undo"
    BY_HAND = "replica started by hand"


@dataclass(frozen=True)
class Write:
    """One write of the guest: ``count`` parts from part ``start`` of the data disk, or of a file with this number."""

    how: Writing
    start: int
    count: int

    @property
    def script(self) -> str:
        """Shell commands that do it."""
        place = f"bs=64k count={self.count} seek={self.start} oflag=direct conv=notrunc"
        file = f"/data/soak-{self.start % _FILES}"
        match self.how:
            case Writing.RANDOM:
                return f"dd if=/dev/urandom of=/dev/vdb {place}"
            case Writing.ZERO:
                return f"dd if=/dev/zero of=/dev/vdb {place}"
            case Writing.TRIM:
                # It wants the device for itself, which another one may just have.
                trim = f"blkdiscard -o $(({self.start} * 65536)) -l $(({self.count} * 65536)) /dev/vdb"
                return f"for try in 1 2 3 4 5; do {trim} && break; [ $try -lt 5 ]; sleep 1; done"
            case Writing.FILE:
                return f"dd if=/dev/urandom of={file} bs=64k count={self.count} conv=fsync"
            case Writing.ZERO_FILE:
                return f"dd if=/dev/zero of={file} bs=64k count={self.count} conv=fsync"
            case Writing.REMOVE:
                return f"rm -f {file}; sync; fstrim /data"
            case Writing.SWAP:
                return (f"dd if=/dev/urandom of=/data/swapped bs=4k count={self.count} "
                        f"seek={self.start} conv=notrunc,fsync")


@dataclass(frozen=True)
class Round:
    """One session and what is around it.

    :ivar job: its number.
    :ivar meanwhile: written between the snapshot and the first read.
    :ivar point: the fault point, if the fault has one.
    :ivar during: a fault of the host comes while the snapshot is held, not before the session.
    :ivar full_scan: the operator wants every block compared.
    :ivar pick: for whatever is chosen among things that only the round meets: files, restore points.
    """

    job: int
    writes: tuple[Write, ...]
    meanwhile: tuple[Write, ...]
    before: Before
    fault: Fault
    point: str
    during: bool
    full_scan: bool
    pick: int


def draw(dice: random.Random, jobs: int, points: Sequence[str]) -> Round:
    """The next round; most sessions meet a fault."""
    fault = dice.choice(list(Fault)[1:]) if dice.random() < 0.65 else Fault.NONE
    if fault in (Fault.RESTART_LIBVIRTD, Fault.POWER_OFF, Fault.ERROR_POINT) and dice.random() < 0.5:
        fault = Fault.KILL_POINT  # there are many points, and one of each of the others
    before = dice.choices(list(Before), weights=[20, 3, 2, 1])[0]
    return Round(
        job=dice.randrange(jobs),
        writes=_writes(dice, dice.randint(0, 5)),
        meanwhile=_writes(dice, dice.randint(0, 3)),
        before=before,
        fault=fault,
        point=dice.choice(points) if fault in (Fault.KILL_POINT, Fault.ERROR_POINT) else "",
        during=dice.random() < 0.5,
        full_scan=dice.random() < 0.08,
        pick=dice.randrange(1 << 30),
    )


def undisturbed(job: int) -> Round:
    """A round in which nothing happens: the first of each job, so that there is a replica."""
    return Round(job, (), (), Before.NOTHING, Fault.NONE, "", during=False, full_scan=False, pick=0)


def _writes(dice: random.Random, count: int) -> tuple[Write, ...]:
    found = []
    for _ in range(count):
        length = dice.choice([1, 1, 2, 5, 16, 40])
        found.append(Write(dice.choice(list(Writing)), dice.randrange(DISK_PARTS - length), length))
    return tuple(found)
