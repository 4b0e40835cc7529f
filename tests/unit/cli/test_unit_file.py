"""The systemd unit: what is shipped is valid, and what is installed starts this program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.cli import proxy
from understudy.cli.proxy import UNIT, unit_for
from understudy.errors import MoverError
from understudy.mover.settings import DEFAULT_STATE_DIR as STATE_DIR

SHIPPED = Path(__file__).parents[3] / "packaging" / UNIT


def verified(path: Path) -> str:
    """What systemd complains of."""
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    return "\n".join(line for line in done.stderr.splitlines() if UNIT in line)


def test_the_unit_that_is_installed_starts_this_program_with_its_directory(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    unit = unit_for(place)
    assert f'ExecStart="{sys.executable}" -m understudy proxy serve --state-dir "{place}"\n' in unit
    assert f"ConditionPathExists={place}/proxy.json\n" in unit
    assert "/usr/local/bin" not in unit
    assert unit_for(STATE_DIR).count(str(STATE_DIR)) == SHIPPED.read_text().count(str(STATE_DIR))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    path = tmp_path / UNIT
    path.write_text(unit_for(tmp_path))
    assert verified(path) == ""



@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for systemctl, which notes what it was told; the returned file is the note."""
    bin_dir, note = tmp_path / "bin", tmp_path / "note"
    bin_dir.mkdir()
    program = bin_dir / "systemctl"
    program.write_text(f"""#!/bin/sh
echo "$@" >> {note}
[ "$1" != "$FAILS" ] || {{ echo "Unit is masked." >&2; exit 1; }}
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_dir), prepend=os.pathsep)
    monkeypatch.setattr(proxy, "UNIT_DIR", tmp_path)
    return note


def test_enrolment_starts_the_service_now_and_with_the_machine(systemctl: Path, tmp_path: Path) -> None:
    proxy.start_service(tmp_path / "state")
    assert (tmp_path / UNIT).read_text() == unit_for(tmp_path / "state")
    assert systemctl.read_text().splitlines() == ["daemon-reload", f"enable {UNIT}", f"restart {UNIT}"]


def test_a_service_that_systemd_does_not_start_is_told(
    systemctl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "enable")
    with pytest.raises(MoverError, match=r"did not start the service: Unit is masked\.; run 'understudy proxy serve"):
        proxy.start_service(tmp_path / "state")
    assert len(systemctl.read_text().splitlines()) == 2
