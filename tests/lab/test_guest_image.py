"""The guest image is built once, also when two processes ask for it at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from understudy.lab.guest import build_guest

pytestmark = pytest.mark.system

_BUILD = "import sys; from pathlib import Path; from understudy.lab.guest import build_guest; "
_BUILD += "print(build_guest(Path(sys.argv[1])).image)"


def test_two_processes_that_build_at_once_get_the_same_image(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _BUILD, str(tmp_path)]
    builds = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    images = {build.communicate()[0] for build in builds}
    assert [build.returncode for build in builds] == [0, 0]
    assert len(images) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".qcow2"]


def test_a_cached_guest_is_not_built_again(cache_dir: Path) -> None:
    first = build_guest(cache_dir)
    written = first.image.stat().st_mtime_ns
    assert build_guest(cache_dir).image.stat().st_mtime_ns == written
