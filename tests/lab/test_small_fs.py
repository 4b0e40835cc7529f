"""A file system on one lab host that can be full."""

from __future__ import annotations

import sys

import pytest

from understudy.lab.errors import CommandFailed
from understudy.lab.lab import Lab
from understudy.lab.small_fs import SmallFs

pytestmark = pytest.mark.system


def test_a_small_file_system_fills_up_on_its_host_only(lab: Lab) -> None:
    directory = lab.directory / "small"
    small = SmallFs.mount(lab.beta, directory, 16 << 20)
    assert 8 << 20 < small.free() < 16 << 20
    script = (
        "import os, sys; fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT); os.write(fd, b'x' * 4096); os.fsync(fd)"
    )
    lab.beta.run([sys.executable, "-c", script, str(directory / "kept")])
    with pytest.raises(CommandFailed, match="No space left on device"):
        lab.beta.run(["dd", "if=/dev/zero", f"of={directory}/big", "bs=1M"])
    assert sorted(path.name for path in small.outside.iterdir()) == ["big", "kept"]
    assert list(directory.iterdir()) == []
    (small.outside / "big").unlink()
    assert small.free() > 8 << 20
    small.unmount()
    assert list(small.outside.iterdir()) == []
