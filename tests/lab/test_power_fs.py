"""The power cut of a file system loses what was not synced, and nothing else."""

from __future__ import annotations

import pytest

from understudy.lab.lab import Lab
from understudy.lab.power_fs import PowerFs

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", params=[True, False], ids=["journal", "no journal"])
def power(lab: Lab, request: pytest.FixtureRequest) -> PowerFs:
    name = f"power-{'with' if request.param else 'without'}"
    return PowerFs.mount(lab.beta, lab.directory / name, 64 << 20, journal=request.param)


def write(power: PowerFs, script: str) -> None:
    """Run a shell script in the file system's directory, as a program on its host."""
    power.host.run(["sh", "-c", f"cd {power.directory}; {script}"])


def test_what_was_synced_survives_and_all_else_is_gone(power: PowerFs) -> None:
    write(power, "echo kept >synced; sync synced .; echo new >unsynced; echo more >>synced")
    assert (power.outside / "unsynced").read_text() == "new\n"
    power.cut()
    assert [path.name for path in power.outside.iterdir() if path.name != "lost+found"] == ["synced"]
    assert (power.outside / "synced").read_text() == "kept\n"


def test_a_rename_that_was_not_synced_is_undone(power: PowerFs) -> None:
    write(power, "mkdir d; echo one >d/old; sync d/old d .; mv d/old d/new")
    power.cut()
    assert [path.name for path in (power.outside / "d").iterdir()] == ["old"]
    write(power, "mv d/old d/new; sync d")
    power.cut()
    assert (power.outside / "d/new").read_text() == "one\n"


def test_a_file_that_replaces_another_one_unsynced_is_not_flushed_by_the_kernel(power: PowerFs) -> None:
    write(power, "echo one >record; sync record .; echo two >partial; mv partial record; sync .")
    power.cut()
    record = power.outside / "record"  # without a journal, the name of a file that is nowhere
    assert not record.is_file() or "two" not in record.read_text()


def test_a_removal_that_was_not_synced_is_undone(power: PowerFs) -> None:
    write(power, "echo one >gone; sync gone .; rm gone")
    power.cut()
    assert (power.outside / "gone").read_text() == "one\n"
