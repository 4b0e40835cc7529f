"""Hello: what both sides of a transfer must agree on before anything is written, and what a connection says it is."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from understudy.errors import Refused, UnderstudyError
from understudy.mover.arriving import ArrivingDisk
from understudy.mover.digest import DigestReader
from understudy.mover.frames import MOST_CONNECTIONS, MOST_EPOCHS, Codec, Frame, FrameType, Geometry
from understudy.mover.wire import Connection

VERSION = 3


@dataclass(frozen=True)
class Receiving:
    """What both sides of a transfer must agree on, and who may send.

    :ivar source_identity: name in the certificate of the source proxy; empty for one that comes by Unix socket.
    :ivar base_point: the point that the layer lies on, or empty.
    :ivar base_digests: its digest file, or None.
    :ivar patience_s: how long nobody may be connected.
    """

    source_identity: str
    point: str
    disk: str
    size: int
    block_size: int
    chained: bool
    base_point: str
    base_digests: Path | None
    patience_s: float


def check_hello(hello: dict[str, object], receiving: Receiving) -> None:
    """Both sides must mean the same disk, point and base: a delta on another base would be wrong everywhere.

    :raises Refused: if they do not.
    """
    expected: dict[str, object] = {
        "version": VERSION, "disk": receiving.disk, "size": receiving.size, "block_size": receiving.block_size,
        "chained": receiving.chained, "point": receiving.point,
    }
    if hello.get("base_point"):
        expected["base_point"] = receiving.base_point if receiving.chained else ""
    for name, value in expected.items():
        if hello.get(name) != value:
            raise Refused(f"receive disk {receiving.disk!r}",
                          f"{name} is {hello.get(name)!r} at the source proxy and {value!r} here")


def shared_base(stack: ExitStack, hello: dict[str, object], receiving: Receiving) -> DigestReader | None:
    """The base digests here, if they are the ones that the source side starts from; else all digests are sent."""
    if not hello.get("base_checksum") or receiving.base_digests is None:
        return None
    try:
        base = stack.enter_context(DigestReader(receiving.base_digests))
    except UnderstudyError:
        # Damaged here, intact at the source side: its digests come over the wire and heal ours.
        return None
    same = f"{base.header.checksum:016x}" == hello["base_checksum"] and base.header.block_size == receiving.block_size
    return base if same else None


def sender_of(hello: dict[str, object], receiving: Receiving) -> str:
    """Which source side it is: one that is started again is another.

    :raises Refused: if it does not say so, or is for nothing that we know.
    """
    sender, role = hello.get("sender"), hello.get("role")
    if role not in ("answers", "data"):
        raise Refused(f"receive disk {receiving.disk!r}", f"there is no connection for {role!r}")
    if not isinstance(sender, str) or not sender:
        raise Refused(f"receive disk {receiving.disk!r}", "the source proxy does not say who it is")
    return sender


def number_of(hello: dict[str, object], receiving: Receiving) -> tuple[int, int]:
    """Slot and epoch of a connection for data.

    :raises Refused: if there can be none of these.
    """
    slot, epoch = hello.get("slot"), hello.get("epoch")
    if not _below(slot, MOST_CONNECTIONS) or not _below(epoch, MOST_EPOCHS):
        raise Refused(f"receive disk {receiving.disk!r}", f"there is no connection {slot!r}.{epoch!r}")
    return slot, epoch


def _below(value: object, limit: int) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < limit


def say_claims(connection: Connection, disk: ArrivingDisk, geometry: Geometry) -> None:
    """Tell the source side which blocks the layer has already, with their digests as far as they are known.

    :raises LinkLost: if the connection is gone.
    """
    for first, count, digests in disk.claims():
        offset = first * geometry.block_size
        if digests:
            frame = Frame(FrameType.CLAIM, Codec.NONE, offset, len(digests), len(digests))
            connection.send(frame, digests, digests)
        else:
            length = min(count * geometry.block_size, geometry.size - offset)
            connection.send(Frame(FrameType.UNKNOWN, Codec.NONE, offset, length))
