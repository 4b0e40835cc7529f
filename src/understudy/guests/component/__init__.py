"""What is copied into a guest: one self-contained program for each kind of guest.

The POSIX sh program is kept in parts for readers; in the guest it is one file. Applications are frozen in the order in
which they stand here: what holds its users up the least comes first.
"""

from __future__ import annotations

from importlib.resources import files

from understudy.model.guest import GuestSystem

_BASE = ("head", "processes", "state", "file_systems", "client_sessions")
_APPLICATIONS = ("hooks", "postgresql", "mysql", "mongodb", "redis")
_VERBS = ("applications", "watchdog", "session", "scripts", "cleanup", "main")


def component_for(system: GuestSystem) -> bytes:
    """Return the program for a kind of guest."""
    return powershell_component() if system is GuestSystem.WINDOWS else shell_component()


def shell_component() -> bytes:
    """Return the program for guests with a POSIX shell; it needs nothing but that, /proc and coreutils or busybox."""
    return b"\n".join([
        *(_resource("shell", f"{part}.sh") for part in _BASE),
        f"readonly KINDS='{' '.join(_APPLICATIONS)}'\n".encode(),
        *(_resource("applications", f"{kind}.sh") for kind in _APPLICATIONS),
        *(_resource("shell", f"{part}.sh") for part in _VERBS),
    ])  # fmt: skip


def powershell_component() -> bytes:
    """Return the program for Windows guests; it needs PowerShell 5.1."""
    return _resource("understudy-guest.ps1")


def _resource(*names: str) -> bytes:
    return files(__name__).joinpath(*names).read_bytes()
