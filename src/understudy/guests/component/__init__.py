"""What is copied into a guest: one self-contained program for each kind of guest.

The POSIX sh program is composed of a core and one fragment for each application, in the order in which they are frozen:
what holds its users up the least comes first. It is kept in parts for readers; in the guest it is one file.
"""

from __future__ import annotations

from importlib.resources import files

from understudy.model.guest import GuestSystem

_APPLICATIONS = ("hooks", "postgresql", "mysql", "mongodb", "redis")
_PLACE = b"# Applications are put in here.\n"


def component_for(system: GuestSystem) -> bytes:
    """Return the program for a kind of guest."""
    return powershell_component() if system is GuestSystem.WINDOWS else shell_component()


def shell_component() -> bytes:
    """Return the program for guests with a POSIX shell; it needs nothing but that, /proc and coreutils or busybox."""
    core = _resource("understudy-guest.sh")
    if core.count(_PLACE) != 1:
        raise AssertionError("the core has exactly one place for its applications")
    fragments = [_resource("applications", f"{kind}.sh") for kind in _APPLICATIONS]
    kinds = f"readonly KINDS='{' '.join(_APPLICATIONS)}'\n".encode()
    return core.replace(_PLACE, b"\n".join([kinds, *fragments]))


def powershell_component() -> bytes:
    """Return the program for Windows guests; it needs PowerShell 5.1."""
    return _resource("understudy-guest.ps1")


def _resource(*names: str) -> bytes:
    return files(__name__).joinpath(*names).read_bytes()
