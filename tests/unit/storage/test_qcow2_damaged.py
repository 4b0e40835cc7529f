"""A damaged layer is either called damaged before anything lies on it, or shows what it showed."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.errors import ReplicaError
from understudy.storage.qcow2.format import CLUSTER, check_maps, layer_is_empty, read_header, rebind

from .replica_lab import content, lab_in, qemu

MIB = 1 << 20
QUICK = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
#: The fields of a version 3 header end here.
HEADER = 104


def test_every_flipped_bit_of_a_header_is_told_or_harmless(tmp_path: Path) -> None:
    with lab_in(tmp_path) as lab:
        for number in (1, 2):
            lab.add_point(random.Random(number), f"p{number}", {"vda": 2 * MIB})
        lower, upper = (lab.store.image(point, "vda") for point in ("p1", "p2"))
        for layer in (lower, upper):
            layer.chmod(0o600)
            good = layer.read_bytes()
            for bit in range(HEADER * 8):
                with layer.open("r+b") as file:
                    file.seek(bit // 8)
                    file.write(bytes([good[bit // 8] ^ 1 << bit % 8]))
                if lab.store.damage("p2") == []:
                    # QEMU does not look at some fields, and a compatible feature bit may say anything.
                    assert content(upper) == lab.images["p2"]["vda"], (layer.name, bit)
                with layer.open("r+b") as file:
                    file.write(good[:HEADER])
        assert lab.store.damage("p2") == []


def test_an_impossible_entry_of_the_first_table_and_snapshots_inside_are_told(tmp_path: Path) -> None:
    with lab_in(tmp_path) as lab:
        lab.add_point(random.Random(1), "p1", {"vda": 2 * MIB})
        layer = lab.store.image("p1", "vda")
        layer.chmod(0o600)
        good = layer.read_bytes()
        place = read_header(layer).l1_offset
        for entry in (1 << 63 | 1 << 50, 1 << 63 | 512, 3, 1 << 62):
            layer.write_bytes(good[:place] + struct.pack(">Q", entry) + good[place + 8:])
            assert "impossible table entry" in lab.store.damage("p1")[0]
        layer.write_bytes(good[:60] + struct.pack(">I", 3) + good[64:])
        assert "3 snapshots inside" in lab.store.damage("p1")[0]


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer as QEMU leaves it, with data, zeros and a name below."""
    place = tmp_path_factory.mktemp("layer")
    qemu("qemu-img", "create", "-q", "-f", "qcow2", place / "below.qcow2", "2M")
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", "below.qcow2", "-F", "qcow2", place / "good.qcow2")
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 300k", "-c", "write -z 512k 128k", place / "good.qcow2")
    return place / "good.qcow2"


@QUICK
@given(data=st.data())
def test_readers_of_layers_raise_nothing_but_their_error_and_keep_to_the_file(
        tmp_path: Path, layer: Path, data: st.DataObject) -> None:
    path = tmp_path / "bad.qcow2"
    shutil.copyfile(layer, path)
    content = bytearray(path.read_bytes())
    tables = st.integers(0, HEADER) | st.integers(3 * CLUSTER, min(len(content), 5 * CLUSTER) - 9)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(tables)
        value = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f" * 4]))
        content[place:place + len(value)] = value
    path.write_bytes(content[:data.draw(st.sampled_from([len(content)] * 3 + [0, 100, CLUSTER, 4 * CLUSTER]))])
    for read in (read_header, layer_is_empty, check_maps, lambda found: rebind(found, "other.qcow2")):
        with suppress(ReplicaError):
            read(path)


def test_the_table_check_before_a_repair_accepts_what_qemu_accepts(layer: Path) -> None:
    check_maps(layer)
    assert subprocess.run(["qemu-img", "check", "-q", str(layer)], check=False).returncode == 0
