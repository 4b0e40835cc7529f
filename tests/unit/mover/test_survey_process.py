"""The process that looks into guests' disks has no rights, little memory and time, and is not believed (G10).

The processes are real; :mod:`tests.unit.mover.hostile_child` is one that does what a taken-over one would do.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import make_image, run, served
from understudy.context import Context
from understudy.errors import Cancelled, TransferError
from understudy.model.exclusion import DiskSurvey
from understudy.model.extent import Extent
from understudy.mover.api import SurveyDisks, SurveyedDisk
from understudy.mover.protocol import encode
from understudy.mover.survey_process import survey_disks
from understudy.units import KIB, MIB

HOSTILE = "tests.unit.mover.hostile_child"
ROOT = not os.geteuid()


@dataclass(frozen=True)
class Look:
    """Looks at one disk; that of the hostile process needs nothing on it."""

    disk: SurveyedDisk

    def hostile(self, act: str, timeout_s: float = 60) -> DiskSurvey:
        request = SurveyDisks((self.disk,), True, (f"/{act}",), False, False, ())
        (found,) = survey_disks(Context(), request, None, timeout_s=timeout_s, module=HOSTILE)
        return found

    def refusal(self, act: str, timeout_s: float = 60) -> str:
        with pytest.raises(TransferError) as refused:
            self.hostile(act, timeout_s)
        return refused.value.why


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    place = tmp_path_factory.mktemp("disk")
    image = make_image(place / "disk.qcow2", MIB)
    with served(place, image) as source:
        yield Look(SurveyedDisk("vda", source, MIB))


@pytest.fixture(autouse=True)
def path_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process finds the hostile module."""
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")])))


def test_what_is_on_a_disk_is_found_by_the_process(tmp_path: Path) -> None:
    raw = tmp_path / "disk"
    with raw.open("wb") as handle:
        handle.truncate(24 * MIB)
    run("sgdisk", "-n", "1:2048:16383", "-n", "2:16384:32767", raw)
    for first, make in ((2048, ("mkfs.ext4", "-q")), (16384, ("mkswap", "-q"))):
        part = tmp_path / make[0]
        with part.open("wb") as handle:
            handle.truncate(7 * MIB)
        run(*make, part)
        with raw.open("r+b") as handle:
            handle.seek(first * 512)
            handle.write(part.read_bytes())
    with served(tmp_path, raw, "raw") as source:
        disk = SurveyedDisk("vda", source, 24 * MIB)
        (found,) = survey_disks(Context(), SurveyDisks((disk,), True, (), False, False, ()), None)
    assert found.notes == ()
    assert found.exclusion.ranges == (Extent(8 * MIB + 64 * KIB, 7 * MIB - 64 * KIB),)
    assert found.exclusion.by_kind == {"swap": 7 * MIB - 64 * KIB}
    assert found.used > 7 * MIB


def test_it_has_no_rights(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_SECRET", "x")
    left, right = os.pipe()
    try:
        for number in (left, right):
            os.set_inheritable(number, True)
        (note,) = look.hostile("tell_rights").notes
    finally:
        os.close(left)
        os.close(right)
    rights = json.loads(note.removeprefix("disk vda: "))
    assert rights["no_new_privileges"]
    assert set(rights["environment"]) <= {"PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR", "LC_CTYPE"}
    # The connection to the disk alone.
    assert len(rights["descriptors"]) == 1
    assert {rights["refused"][name] for name in ("open", "socket", "unix", "pipe")} == {"EMFILE"}
    if ROOT:
        assert rights["ids"] == [65534] * 6
        assert not rights["can_read_shadow"]
        assert rights["refused"]["fork"] == "EAGAIN"
        assert {rights["refused"][name] for name in ("user", "group", "kill")} == {"EPERM"}


def test_it_dies_with_the_process_that_started_it(look: Look) -> None:
    request = SurveyDisks((look.disk,), True, ("/linger",), False, False, ())
    code = (
        "import sys; from understudy.context import Context; from understudy.mover.api import SurveyDisks;"
        "from understudy.mover.protocol import decode; from understudy.mover.survey_process import survey_disks;"
        f"survey_disks(Context(), decode(SurveyDisks, sys.stdin.buffer.read()), None, module={HOSTILE!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as asker:
        assert asker.stdin is not None
        asker.stdin.write(encode(request))
        asker.stdin.close()
        try:
            child = _child_without_rights(asker.pid)
        finally:
            asker.kill()
    # Nobody but the kernel tells it.
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(child)
        try:
            assert select.select([descriptor], [], [], 20)[0]
        finally:
            os.close(descriptor)


def _child_without_rights(parent: int) -> int:
    """Wait until the process that ``parent`` has started is in its reader."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in children.read_text().split():
            if "Max open files            3" in Path(f"/proc/{child}/limits").read_text():
                return int(child)
        time.sleep(0.02)
    raise AssertionError("it did not start")


def test_a_reader_that_eats_memory_costs_its_disk_its_exclusion(look: Look) -> None:
    found = look.hostile("eat_memory")
    assert found.exclusion.ranges == ()
    assert found.notes == ("disk vda: reader failed: MemoryError: ",)
    assert look.refusal("eat_memory_between_readers") == "it takes more than 512 MiB of memory"


@pytest.mark.parametrize(("act", "why"), [
    ("spin", "it took too much time of the processor"),
    ("crash", "the process was ended by signal 11 (Segmentation fault)"),
    ("end_oddly", "the process was ended by signal 37 (Real-time signal 3)"),
    ("exit_silently", "the process ended with status 3"),
    ("complain", "the last word"),
    ("talk", "the answer is too long"),
    ("stammer", "the process gave no answer that can be understood"),
    ("lie", "the answer makes no sense: disk vda: the bytes for each reason are not those of the ranges"),
])  # fmt: skip
def test_what_becomes_of_it_is_the_reason_why_nothing_is_left_out(look: Look, act: str, why: str) -> None:
    assert look.refusal(act) == why


@pytest.mark.parametrize(("act", "why"), [
    ("linger", "it took too long"), ("hold_on", "the process does not end"),
])  # fmt: skip
def test_it_is_ended_when_its_time_is_over(look: Look, act: str, why: str) -> None:
    before = children()
    started = time.monotonic()
    assert look.refusal(act, timeout_s=3) == why
    assert time.monotonic() - started < 30
    assert children() == before


def test_it_is_ended_when_the_operator_wants_so(look: Look) -> None:
    before = children()
    ctx = Context()
    threading.Timer(1.0, ctx.cancel.cancel).start()
    request = SurveyDisks((look.disk,), True, ("/linger",), False, False, ())
    with pytest.raises(Cancelled):
        survey_disks(ctx, request, None, module=HOSTILE)
    assert children() == before


def test_a_disk_that_cannot_be_reached_is_a_reason(look: Look) -> None:
    request = SurveyDisks((replace(look.disk, size=2 * MIB),), True, (), False, False, ())
    with pytest.raises(TransferError, match="it has 1048576 bytes, expected 2097152"):
        survey_disks(Context(), request, None)


def children() -> set[str]:
    """Of this process, alive or not."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())
