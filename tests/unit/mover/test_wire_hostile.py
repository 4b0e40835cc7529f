"""Whoever has got through to the data port and does not keep to the protocol: told why, and nobody else suffers."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import xxhash

from tests.unit.mover.mover_lab import RawLayer, same_content
from tests.unit.mover.scan_lab import Scan
from tests.unit.mover.wire_lab import (
    BLOCK,
    DROP,
    HEADER,
    SIZE,
    Passage,
    Receipt,
    Relay,
    Sender,
    Target,
    arriving,
    assert_error,
    eventually,
    parse,
    receiving,
)
from understudy.errors import LinkLost, Refused, TransferError, UnderstudyError
from understudy.mover.api import NbdSource
from understudy.mover.digest import DIGEST_BYTES, array_checksum
from understudy.mover.frames import HEADER_BYTES, Codec, Frame, FrameType, pack_header, pack_parts, pack_sum
from understudy.mover.hello import VERSION
from understudy.mover.wire import error_of
from understudy.units import KIB

HELLO: dict[str, Any] = {
    "version": VERSION, "sender": "me", "role": "data", "disk": "vda", "size": SIZE, "block_size": BLOCK,
    "chained": False, "point": "p", "base_point": "", "base_checksum": "", "slot": 0, "epoch": 0,
}


class Raw:
    """A client that sends whatever it is told to."""

    made: ClassVar[list[Raw]] = []

    def __init__(self, path: Path) -> None:
        self.made.append(self)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.number = 0

    def send(self, frame_type: int, payload: bytes = b"", offset: int = 0, raw_length: int | None = None,
             **fields: Any) -> None:
        """Send a frame, all right but for ``fields``."""
        length = len(payload) if raw_length is None else raw_length
        values = {"codec": 0, "flags": 0, "wire_length": len(payload), "number": self.number, **fields}
        frame = Frame(FrameType.ZERO, Codec.NONE, offset, length, values["wire_length"], values["number"])
        header = bytearray(pack_header(frame, payload))
        header[4:8] = struct.pack("<BBH", frame_type, values["codec"], values["flags"])
        header[32:] = _checksum(bytes(header[:32]), payload)
        if "checksum" in fields:
            header[32:] = struct.pack("<Q", fields["checksum"])
        self.number += 1
        try:
            self.socket.sendall(bytes(header) + payload)
        except OSError:
            return  # told already, and closed

    def hello(self, ticket: str, **fields: Any) -> None:
        """Send a hello."""
        self.send(FrameType.HELLO, json_of({**HELLO, "ticket": ticket, **fields}))

    def welcomed(self) -> Raw:
        """Take the welcome."""
        frame, payload = self.receive()
        assert frame.type is FrameType.WELCOME, payload
        return self

    def receive(self) -> tuple[Frame, bytes]:
        """The next frame."""
        frame = parse(self._exactly(HEADER_BYTES))
        return frame, self._exactly(frame.wire_length)

    def error(self) -> UnderstudyError:
        """The error that comes; before it, acknowledgements and the like."""
        while True:
            frame, payload = self.receive()
            if frame.type is FrameType.ERROR:
                self.close()
                return error_of(payload)

    def close(self) -> None:
        self.socket.close()

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self.socket.recv(count - len(found))
            if not more:
                raise ConnectionError(f"closed after {len(found)} bytes")
            found += more
        return found


def json_of(fields: object) -> bytes:
    return json.dumps(fields).encode()


def _checksum(fields: bytes, raw: bytes) -> bytes:
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(raw, seed=xxhash.xxh3_64_intdigest(fields)))


class Place:
    """A data port with two transfers: one to be attacked, one that must not notice."""

    def __init__(self, directory: Path, target: Target, image: Path, where: NbdSource) -> None:
        self.target = target
        self.layer = RawLayer(directory / "layer", SIZE)
        self.receipt = target.receive(arriving(self.layer, directory / "digest"), receiving(), "attacked")
        self.image = image
        self.bystander = RawLayer(directory / "other.layer", SIZE)
        self.other = target.receive(arriving(self.bystander, directory / "other.digest"), receiving(), "other")
        self.sender = Sender(where, directory / "other.source")

    def client(self, **fields: Any) -> Raw:
        """A client that was welcomed."""
        raw = Raw(self.target.path)
        raw.hello(self.receipt.ticket, **fields)
        return raw.welcomed()

    def listener(self) -> Raw:
        """A client that hears answers."""
        raw = self.client(role="answers", claims=True)
        assert raw.receive()[0].type is FrameType.SETTLED
        eventually(lambda: self.receipt.reception._answers.connected)
        return raw

    def failed(self, kind: type[UnderstudyError], text: str) -> None:
        """The attacked transfer failed, for that reason."""
        assert_error(self.receipt.side.end(10), kind, text)
        assert not self.layer.finished

    def goes_on(self) -> None:
        """The attacked transfer goes on."""
        assert self.receipt.side.running


def usage() -> tuple[int, int]:
    """Threads and open files of this process."""
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def place(tmp_path: Path, target: Target, disk_image: Path, disk: NbdSource) -> Iterator[Place]:
    """At the end the other transfer succeeds, and nothing is left over."""
    before = usage()
    made = Place(tmp_path, target, disk_image, disk)
    try:
        yield made
        made.sender.start(made.other.address)
        assert made.sender.side.end() is None
        assert made.other.side.end() is None
        assert same_content(disk_image, "qcow2", made.bystander.path, "raw")
    finally:
        made.receipt.stop()
        made.other.stop()
        while Raw.made:
            Raw.made.pop().socket.close()
    for reception in (made.receipt, made.other):
        reception.reception._disk.close()
    del made
    eventually(lambda: usage() <= before and usage()[1] <= before[1], f"{before}: threads and files given back")


BLOCK_OF_DATA = bytes(range(256)) * (BLOCK // 256)


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda raw: raw.send(FrameType.DATA, BLOCK_OF_DATA, checksum=1), "checksum"),
        (lambda raw: raw.send(FrameType.ZERO, raw_length=BLOCK, checksum=1), "checksum"),
        (lambda raw: raw.send(FrameType.DATA, BLOCK_OF_DATA, number=2), "frame 2 instead of 1"),
        (lambda raw: raw.send(FrameType.DATA, BLOCK_OF_DATA, number=0), "frame 0 instead of 1"),
        (lambda raw: raw.send(FrameType.DATA, bytes(2 * BLOCK)), "data frame of 524288 bytes"),
        (lambda raw: raw.send(FrameType.DATA, bytes(64), raw_length=2 * BLOCK, codec=2), "data frame of 524288 bytes"),
        (lambda raw: raw.send(FrameType.DATA, b"", wire_length=(1 << 32) - 1), "data frame of 0 bytes"),
        (lambda raw: raw.send(FrameType.DATA, b"", raw_length=1 << 63, wire_length=0), "data frame"),
        (lambda raw: raw.send(FrameType.DATA, BLOCK_OF_DATA, offset=20 * BLOCK), "disk of"),
        (lambda raw: raw.send(FrameType.DATA, BLOCK_OF_DATA, offset=1 << 63), "disk of"),
        (lambda raw: raw.send(FrameType.ZERO, raw_length=1 << 62), "disk of"),
        (lambda raw: raw.send(FrameType.DATA, BLOCK_OF_DATA, offset=512), "disk of"),
        (lambda raw: raw.send(FrameType.DATA, BLOCK_OF_DATA[:512]), "disk of"),
        (lambda raw: raw.send(FrameType.DIGEST, bytes(16), offset=64 * 1024), "disk of"),
        (lambda raw: raw.send(FrameType.DIGEST, bytes(32), offset=20 * BLOCK), "disk of"),
        (lambda raw: raw.send(99, b""), "99 is not a valid FrameType"),
        (lambda raw: raw.send(0, b""), "0 is not a valid FrameType"),
        (lambda raw: raw.send(FrameType.DATA, BLOCK_OF_DATA, codec=9), "9 is not a valid Codec"),
        (lambda raw: raw.send(FrameType.DATA, BLOCK_OF_DATA, flags=1), "no frame where one must start"),
        (lambda raw: raw.send(FrameType.DATA, b"\xff" * 100, raw_length=BLOCK, codec=2), "decompress"),
        (lambda raw: raw.send(FrameType.DATA, b"\xff" * 100, raw_length=BLOCK, codec=1), "decompress"),
        (lambda raw: raw.send(FrameType.WELCOME, b"{}"), "a welcome frame in the middle"),
        (lambda raw: raw.send(FrameType.HELLO, b"{}"), "a hello frame in the middle"),
        (lambda raw: raw.send(FrameType.ERROR, b"{}"), "a error frame in the middle"),
        (lambda raw: raw.send(FrameType.UNKNOWN, raw_length=BLOCK), "a unknown frame in the middle"),
        (lambda raw: raw.send(FrameType.CLAIM, bytes(16)), "a claim frame in the middle"),
        (lambda raw: raw.send(FrameType.ACKNOWLEDGE, bytes(16)), "a acknowledge frame in the middle"),
        (lambda raw: raw.send(FrameType.DIFFER, bytes(8)), "a differ frame in the middle"),
        (lambda raw: raw.send(FrameType.ASK, bytes(48)), "disk of"),
        (lambda raw: raw.send(FrameType.ASK, bytes(64), offset=64 * 1024), "disk of"),
        (lambda raw: raw.send(FrameType.ASK, bytes(64), offset=20 * BLOCK), "disk of"),
        (lambda raw: raw.send(FrameType.ASK, bytes(64), offset=1 << 63), "disk of"),
        (lambda raw: raw.send(FrameType.ASK, bytes(2048)), "ask frame of 2048 bytes"),
        (lambda raw: raw.send(FrameType.ASK, bytes(64), checksum=1), "checksum"),
        (lambda raw: raw.send(FrameType.END, bytes(4)), "an end frame of wrong length"),
        (lambda raw: raw.send(FrameType.END, bytes(16)), "end frame of 16 bytes"),
        (lambda raw: raw.send(FrameType.END, pack_sum(5)), "not those of the source side"),
        (lambda raw: raw.socket.sendall(b"GET / HTTP/1.1\r\nHost: understudy.example\r\n\r\n"), "no frame where"),
    ],
)
def test_what_breaks_the_protocol_ends_the_transfer(place: Place, act: Callable[[Raw], None], text: str) -> None:
    answers = place.listener()
    raw = place.client()
    act(raw)
    assert_error(raw.error(), TransferError, text)
    assert_error(answers.error(), TransferError, text)
    if "not those" not in text:
        place.failed(TransferError, text)
    else:
        assert_error(place.receipt.side.end(10), TransferError, text)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"disk": "vdb"}, "disk is 'vdb'"),
        ({"size": SIZE + 512}, "size is"),
        ({"size": str(SIZE)}, "size is"),
        ({"block_size": 2 * BLOCK}, "block_size is"),
        ({"point": "q"}, "point is 'q'"),
        ({"chained": True}, "chained is True"),
        ({"base_point": "x"}, "base_point is 'x'"),
        ({"version": 1}, "version is 1"),
        ({"version": None}, "version is None"),
        ({"disk": ["vda"]}, "disk is"),
    ],
)
@pytest.mark.parametrize("role", ["data", "answers"])
def test_who_means_another_transfer_ends_it(place: Place, fields: dict[str, Any], text: str, role: str) -> None:
    raw = Raw(place.target.path)
    raw.hello(place.receipt.ticket, role=role, claims=True, **fields)
    assert_error(raw.error(), Refused, text)
    place.failed(Refused, text)
    assert place.layer.calls == []


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"slot": 64}, "no connection 64.0"),
        ({"slot": -1}, "no connection -1.0"),
        ({"slot": "0"}, "no connection '0'.0"),
        ({"slot": None}, "no connection None.0"),
        ({"slot": 1.0}, "no connection 1.0.0"),
        ({"slot": [0]}, "no connection"),
        ({"slot": 1 << 70}, "no connection"),
        ({"epoch": -1}, "no connection 0.-1"),
        ({"epoch": {}}, "no connection"),
        ({"epoch": 1 << 70}, "no connection"),
        ({"sender": None}, "who it is"),
        ({"sender": 5}, "who it is"),
        ({"sender": ""}, "who it is"),
        ({"role": "boss"}, "no connection for 'boss'"),
        ({"role": None}, "no connection for None"),
    ],
)
def test_a_connection_that_makes_no_sense_is_refused_alone(place: Place, fields: dict[str, Any], text: str) -> None:
    raw = Raw(place.target.path)
    raw.hello(place.receipt.ticket, **fields)
    assert_error(raw.error(), Refused, text)
    place.goes_on()
    good = place.client()
    good.send(FrameType.DATA, BLOCK_OF_DATA)
    eventually(lambda: place.layer.written == BLOCK)
    good.close()


def test_a_huge_hello_is_not_read(place: Place) -> None:
    raw = Raw(place.target.path)
    raw.send(FrameType.HELLO, b" " * (65 << 10))
    assert_error(raw.error(), TransferError, "a hello frame of 66560 bytes")
    place.goes_on()


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff\xfe{", b"[" * 60_000,
                                     b'{"ticket": ' + b"9" * 5000 + b"}"])
def test_a_hello_that_is_no_object_is_refused_alone(place: Place, payload: bytes) -> None:
    raw = Raw(place.target.path)
    raw.send(FrameType.HELLO, payload)
    assert isinstance(raw.error(), UnderstudyError)
    place.goes_on()


@pytest.mark.parametrize("ticket", ["", "x", None, 5, ["a"], "0" * 64, "ü" * 1000, "\ud800"])
def test_an_unknown_ticket_is_refused_alone(place: Place, ticket: Any) -> None:
    raw = Raw(place.target.path)
    raw.hello(ticket)
    assert raw.error().code in ("not_found", "transfer")
    place.goes_on()


def test_another_first_frame_than_a_hello_is_refused_alone(place: Place) -> None:
    raw = Raw(place.target.path)
    raw.send(FrameType.WELCOME, b"{}")
    assert_error(raw.error(), TransferError, "a welcome frame instead of hello")
    place.goes_on()


def test_a_ticket_is_worth_nothing_to_another_identity(tmp_path: Path, place: Place) -> None:
    layer = RawLayer(tmp_path / "third", SIZE)
    third = place.target.receive(arriving(layer, tmp_path / "third.d"), receiving(identity="x"), "third")
    raw = Raw(place.target.path)
    raw.hello(third.ticket)
    assert raw.error().code == "not_found"
    assert third.side.running
    assert layer.calls == []
    third.stop()


def test_a_withdrawn_ticket_is_worth_nothing(place: Place) -> None:
    place.receipt.stop()
    raw = Raw(place.target.path)
    raw.hello(place.receipt.ticket)
    assert raw.error().code == "not_found"


def test_who_says_nothing_and_who_hangs_up_costs_nothing(place: Place) -> None:
    for count in (0, 1, 39, 40, 41):
        raw = Raw(place.target.path)
        raw.socket.sendall(pack_header(Frame(FrameType.HELLO, Codec.NONE, 0, 100, 100), bytes(100))[:count])
        if count == 41:
            raw.socket.sendall(b"{")
        raw.close()
    place.goes_on()


def finished(place: Place) -> Raw:
    """A client that brought the whole disk: all zero, but for one block."""
    raw = place.client()
    raw.send(FrameType.DATA, BLOCK_OF_DATA)
    digest = bytes(range(16))
    raw.send(FrameType.DIGEST, digest)
    eventually(lambda: place.layer.complete != [])
    place.receipt.reception._disk.writer.sync()
    fd = os.open(place.receipt.reception._disk.writer.path, os.O_RDONLY)
    try:
        total = array_checksum(fd, 21 * DIGEST_BYTES)
    finally:
        os.close(fd)
    raw.send(FrameType.END, pack_sum(total))
    assert place.receipt.side.end(10) is None
    raw.total = total  # type: ignore[attr-defined]
    return raw


def test_data_after_the_end_changes_nothing(place: Place) -> None:
    answers = place.listener()
    raw = finished(place)
    before = list(place.layer.calls)
    raw.send(FrameType.DATA, BLOCK_OF_DATA, offset=BLOCK)
    assert_error(raw.error(), TransferError, "something came after its end")
    assert place.layer.calls == before
    assert place.layer.finished
    answers.close()


def test_a_question_after_the_end_is_refused(place: Place) -> None:
    answers = place.listener()
    raw = finished(place)
    raw.send(FrameType.ASK, bytes(64), offset=BLOCK)
    assert_error(raw.error(), TransferError, "something came after its end")
    answers.close()


def test_questions_about_a_layer_that_stands_alone_are_answered_with_everything(place: Place) -> None:
    answers = place.listener()
    raw = place.client()
    for index in (3, 3, 20):
        raw.send(FrameType.ASK, bytes(64 if index < 20 else 16), offset=index * BLOCK)
    found: list[tuple[int, bytes]] = []
    while len(found) < 3:
        frame, payload = answers.receive()
        if frame.type is FrameType.DIFFER:
            found.append((frame.offset, payload))
    assert found == [(3 * BLOCK, pack_parts(0xF)), (3 * BLOCK, pack_parts(0xF)), (20 * BLOCK, pack_parts(1))]
    raw.close()
    answers.close()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda frame: (replace(frame, offset=64 * KIB), pack_parts(1)), "disk of"),
        (lambda frame: (replace(frame, offset=21 * BLOCK), pack_parts(1)), "disk of"),
        (lambda frame: (replace(frame, raw_length=4, wire_length=4), bytes(4)), "disk of"),
        (lambda frame: (replace(frame, raw_length=16, wire_length=16), bytes(16)), "differ frame of 16 bytes"),
        (lambda frame: (frame, pack_parts(1 << 4)), "a block of 4 does not have"),
        (lambda frame: (replace(frame, type=FrameType.ASK, raw_length=64, wire_length=64), bytes(64)), "a ask frame"),
        (lambda frame: (replace(frame, type=FrameType.DIGEST, raw_length=16, wire_length=16), bytes(16)), "a digest"),
    ],
)
def test_an_answer_that_breaks_the_protocol_ends_the_source_side(
    tmp_path: Path, target: Target, relay: Relay, make: Callable[[Frame], tuple[Frame, bytes]], text: str
) -> None:
    scan = Scan(tmp_path, target)
    base = scan.replicated()
    scan.change(2)

    def forge(_relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is not FrameType.DIFFER:
            return None
        other, payload = make(frame)
        passage.sockets[0].sendall(pack_header(other, payload) + payload)
        return DROP

    relay.watch_back = forge
    with scan.scanning(base, relay) as sender:
        assert_error(sender.side.end(), TransferError, text)
    assert not scan.layer.finished


def test_the_end_again_is_the_same_end(place: Place) -> None:
    answers = place.listener()
    raw = finished(place)
    raw.send(FrameType.END, pack_sum(raw.total))  # type: ignore[attr-defined]
    raw.send(FrameType.END, pack_sum(1))
    assert_error(raw.error(), TransferError, "not those of the source side")
    assert place.layer.finished
    answers.close()


def test_an_older_connection_cannot_replace_a_newer_one(place: Place) -> None:
    newer = place.client(epoch=3)
    older = Raw(place.target.path)
    older.hello(place.receipt.ticket, epoch=2)
    assert_error(older.error(), Refused, "was made 3 times already")
    newer.send(FrameType.DATA, BLOCK_OF_DATA)
    eventually(lambda: place.layer.written == BLOCK)
    newest = place.client(epoch=4)
    with pytest.raises(ConnectionError):
        newer.receive()
    newer.close()
    newest.close()


def test_many_connections_at_once_are_all_given_back(place: Place) -> None:
    clients = [place.client(slot=slot) for slot in range(64)]
    place.receipt.stop()
    for raw in clients:
        with pytest.raises((ConnectionError, LinkLost)):
            raw.receive()
        raw.close()


# --- mutations of what a real source sends ----------------------------------------------------------------------------


def recorded(tmp_path: Path, target: Target, disk: NbdSource) -> list[bytes]:
    """What a source side sends on its one data connection, after the hello."""
    frames: list[bytes] = []

    def record(_relay: Relay, passage: Any, frame: Frame, payload: bytes) -> None:
        if passage.role == "data" and frame.type is not FrameType.HELLO:
            frames.append(HEADER.pack(b"UST2", frame.type, frame.codec, 0, frame.offset, frame.raw_length,
                                      frame.wire_length, frame.number, frame.checksum) + payload)

    receipt = target.receive(arriving(RawLayer(tmp_path / "rec", SIZE), tmp_path / "rec.d"), receiving(), "recorded")
    relay = Relay(tmp_path / "recorder", target.path)
    relay.watch_there = record
    sender = Sender(disk, tmp_path / "rec.source", connections=1).start(relay.address(receipt.ticket))
    assert sender.side.end() is None
    relay.close()
    receipt.stop()
    receipt.reception._disk.close()
    return frames


def mutated(dice: random.Random, frames: list[bytes]) -> bytes:
    """The stream with something wrong in it; sometimes nothing."""
    chosen = list(frames)
    for _ in range(dice.randint(0, 2)):
        act, at = dice.randrange(5), dice.randrange(len(chosen))
        if act == 0:
            chosen[at] = b""
        elif act == 1:
            chosen.insert(at, chosen[dice.randrange(len(chosen))])
        elif act == 2:
            other = dice.randrange(len(chosen))
            chosen[at], chosen[other] = chosen[other], chosen[at]
    stream = bytearray(b"".join(chosen))
    for _ in range(dice.choice([0, 1, 1, 8])):
        act, at = dice.randrange(4), dice.randrange(max(1, len(stream)))
        starts = [index for index in range(len(chosen)) if chosen[index]]
        if dice.random() < 0.7 and starts:
            # Headers are where it hurts.
            number = dice.choice(starts)
            at = sum(map(len, chosen[:number])) + dice.randrange(40)
        if act == 0:
            stream[at:at + 1] = bytes([dice.randrange(256)])
        elif act == 1:
            stream[at:at + dice.randint(1, 50)] = dice.randbytes(dice.randint(0, 50))
        elif act == 2:
            stream[at:at] = dice.randbytes(dice.randint(1, 100))
        else:
            del stream[at:]
    return bytes(stream)


def test_mutated_streams_neither_hang_nor_crash_nor_pass(
    tmp_path: Path, target: Target, disk_image: Path, disk: NbdSource, caplog: pytest.LogCaptureFixture
) -> None:
    frames = recorded(tmp_path, target, disk)
    before = usage()
    for seed in range(150):
        dice = random.Random(seed)
        stream = mutated(dice, frames)
        layer = RawLayer(tmp_path / f"fuzzed{seed}", SIZE)
        receipt = target.receive(arriving(layer, tmp_path / f"fuzzed{seed}.d"), receiving(), "fuzzed")
        accepted = play(target, receipt, stream)
        error = receipt.side.error
        assert error is None or isinstance(error, UnderstudyError)
        if accepted:
            assert same_content(disk_image, "qcow2", layer.path, "raw"), seed
        receipt.reception._disk.close()
        layer.path.unlink()
        assert not caplog.records or all("defect" not in record.message for record in caplog.records), seed
    eventually(lambda: usage()[0] <= before[0] and usage()[1] <= before[1], f"{before}: all given back")


def play(target: Target, receipt: Receipt, stream: bytes) -> bool:
    """Send it, then hang up; whether the target took it as the whole disk."""
    raw = Raw(target.path)
    raw.socket.settimeout(2)
    raw.hello(receipt.ticket)
    raw.welcomed()
    try:
        raw.socket.sendall(stream)
        raw.socket.shutdown(socket.SHUT_WR)
        while raw.socket.recv(65536):
            pass
    except ConnectionError:
        pass
    raw.close()
    eventually(lambda: not receipt.reception._serving, "the end of its thread", 2.0)
    accepted = receipt.reception._checksum is not None
    receipt.stop()
    return accepted
