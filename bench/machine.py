"""Machine: what the figures were measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from understudy.mover.about import about

_PROGRAMS = {
    "nbdcopy": ("nbdcopy", "--version"),
    "qemu": ("qemu-system-x86_64", "--version"),
    "libvirt": ("libvirtd", "--version"),
    "virtnbdbackup": ("virtnbdbackup", "--version"),
}


def versions() -> dict[str, str]:
    """Versions of everything that takes part."""
    return {**about("bench").versions, **{name: _first_line(command) for name, command in _PROGRAMS.items()}}


def machine() -> dict[str, object]:
    """Facts about the machine, the load by others included."""
    memory = Path("/proc/meminfo").read_text().splitlines()[0].split()[1]
    return {
        "processors": os.cpu_count(),
        "processor": _processor(),
        "memory_bytes": int(memory) * 1024,
        "kernel": platform.release(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _first_line(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "missing"
    return next(iter((done.stdout or done.stderr).splitlines()), "unknown")
