"""Reading costs no memory: what a read was given is let go when it is complete."""

from __future__ import annotations

from pathlib import Path

from tests.unit.mover.mover_lab import make_image, served, write
from understudy.nbd import PIECE, NbdClient


def test_a_buffer_is_let_go_after_its_read(tmp_path: Path) -> None:
    length = 2 * PIECE + 512
    image = make_image(tmp_path / "source.qcow2", 4 * PIECE)
    write(image, 7, (0, 4 * PIECE))
    buffer = bytearray(length)
    (tmp_path / "run").mkdir()
    with served(tmp_path / "run", image) as source, NbdClient(source.socket, source.export) as client:
        with memoryview(buffer) as view:
            client.read(view, 512)
        assert buffer.count(0) < length // 100
        # As long as anything holds a view of it, the length of a bytearray cannot change.
        buffer.clear()
