"""The facts file: a reader sees old facts or new ones, never half of them."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.vsphere.facts import FILE_NAME, DiskFact, Facts, read_facts, write_facts


def facts(count: int) -> Facts:
    disks = (DiskFact(f"vm-{n}", f"[ds] {n}/d.vmdk", f"/ds/{n}/d-flat.vmdk", "", writable=True) for n in range(count))
    return Facts("user", "password", "AB:CD", tuple(disks))


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_facts(tmp_path, facts(2))
    assert read_facts(tmp_path) == facts(2)
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


def test_a_reader_never_sees_half_of_a_file(tmp_path: Path) -> None:
    write_facts(tmp_path, facts(1))
    ended = threading.Event()

    def write() -> None:
        for count in range(300):
            write_facts(tmp_path, facts(count % 40))
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not ended.is_set():
        found = read_facts(tmp_path)
        assert found == facts(len(found.disks))
    writer.join()


def test_a_reader_that_has_the_file_open_keeps_the_old_facts(tmp_path: Path) -> None:
    write_facts(tmp_path, facts(1))
    before = (tmp_path / FILE_NAME).read_text()
    with (tmp_path / FILE_NAME).open() as reader:
        write_facts(tmp_path, facts(2))
        assert reader.read() == before
