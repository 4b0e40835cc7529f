"""How a kind of guest is told to make room for the program, to run it, and to take it away again.

Each verb is the words of one command. Nothing here depends on what the program does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Protocol

from understudy.model.guest import GuestSystem

# A directory that only its owner can enter, without what dead sessions of this job put there. As /run may be unusable,
# a fresh one in /tmp; never one that somebody else made.
_PREPARE = """umask 077
dir=/run/understudy-guest
mkdir -m 700 "$dir" 2>/dev/null
if [ -d "$dir" ] && [ ! -L "$dir" ] && [ -O "$dir" ] && [ -w "$dir" ]; then
    chmod 700 "$dir" && rm -f -- "$dir/$1"*
else
    dir=$(mktemp -d /tmp/understudy-guest.XXXXXX) || exit 1
fi
printf 'directory\\t%s\\n' "$dir"
"""
_LEAVE = """dir=$1 key=$2 program=$3 status=0
[ -z "$program" ] || /bin/sh "$program" cleanup "$key" >/dev/null || status=1
rm -f -- "$dir/$key".* || status=1
case $dir in /tmp/understudy-guest.*) rmdir "$dir";; esac
exit $status
"""

# The same for Windows. Everybody may make a directory in ProgramData, so one counts only if administrators own it. With
# neither double quotes nor line ends, nothing between us and PowerShell can read the words otherwise.
_PREPARE_WINDOWS = """
$ErrorActionPreference = 'Stop'; try {
$dir = Join-Path $env:ProgramData 'Understudy';
$acl = New-Object Security.AccessControl.DirectorySecurity;
$acl.SetSecurityDescriptorSddlForm('O:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)', 'Access, Owner');
[void] [IO.Directory]::CreateDirectory($dir, $acl);
$item = Get-Item -Force -LiteralPath $dir;
$owner = $item.GetAccessControl('Owner').GetOwner([Security.Principal.SecurityIdentifier]).Value;
if ($item.Attributes -band [IO.FileAttributes]::ReparsePoint) { throw ($dir + ' leads elsewhere') };
if ('S-1-5-18', 'S-1-5-32-544' -notcontains $owner) { throw ($dir + ' belongs to ' + $owner) };
$item.SetAccessControl($acl);
Get-ChildItem -Force -File -LiteralPath $dir -Filter (@prefix@ + '*') | Remove-Item -Force;
[Console]::Out.Write('directory' + [char] 9 + $dir + [char] 10)
} catch { [Console]::Error.WriteLine($_.Exception.Message); exit 1 }
"""
_LEAVE_WINDOWS = """
$ErrorActionPreference = 'Stop'; try { try {
if (@program@ -and (Get-ChildItem -Force -Directory -LiteralPath @directory@ -Filter (@key@ + '*')))
{ & @program@ cleanup @key@ }
} finally {
Get-ChildItem -Force -File -LiteralPath @directory@ -Filter (@key@ + '.*') | Remove-Item -Force
} } catch { [Console]::Error.WriteLine($_.Exception.Message); exit 1 }
"""
_VALUE = re.compile(r"@([a-z]+)@")
_POWERSHELL = ("powershell.exe", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass")


class Shell(Protocol):
    """One kind of guest."""

    @property
    def suffix(self) -> str:
        """What the name of the program ends with."""

    @property
    def start_s(self) -> float:
        """How long it may take until a program does anything."""

    def prepare(self, prefix: str) -> list[str]:
        """Make a private directory without files whose names begin with ``prefix``; it answers with the path."""

    def program(self, path: str, words: Sequence[str]) -> list[str]:
        """Run the program with ``words``."""

    def leave(self, directory: str, key: str, program: str) -> list[str]:
        """End what of session ``key`` still runs, by the program at that path if there is one, and remove its files."""

    def path(self, text: str) -> PurePath:
        """A path of such a guest."""


class Posix:
    """A guest with a POSIX shell."""

    suffix = ".sh"
    start_s = 0.0

    def prepare(self, prefix: str) -> list[str]:
        """In memory, if that can be used."""
        return ["/bin/sh", "-c", _PREPARE, "sh", prefix]

    def program(self, path: str, words: Sequence[str]) -> list[str]:
        """Not started by its own name: the directory may be mounted noexec."""
        return ["/bin/sh", path, *words]

    def leave(self, directory: str, key: str, program: str) -> list[str]:
        """With the directory, if that was made for this session."""
        return ["/bin/sh", "-c", _LEAVE, "sh", directory, key, program]

    def path(self, text: str) -> PurePath:
        """A path of such a guest."""
        return PurePosixPath(text)


class Windows:
    """A Windows guest with PowerShell 5.1, which Windows 10, Windows Server 2016 and all later ones have."""

    suffix = ".ps1"
    # PowerShell starts slowly in a guest that was idle. Nothing waits for it frozen.
    start_s = 10.0

    def prepare(self, prefix: str) -> list[str]:
        """In ``%ProgramData%\\Understudy``, for SYSTEM and administrators alone."""
        return _command(_PREPARE_WINDOWS, prefix=prefix)

    def program(self, path: str, words: Sequence[str]) -> list[str]:
        """Whatever the guest's execution policy is, unless a group policy sets it."""
        return [*_POWERSHELL, "-File", path, *words]

    def leave(self, directory: str, key: str, program: str) -> list[str]:
        """The directory stays: another session may be about to use it."""
        return _command(_LEAVE_WINDOWS, directory=directory, key=key, program=program)

    def path(self, text: str) -> PurePath:
        """A path of such a guest."""
        return PureWindowsPath(text)


def shell_of(system: GuestSystem) -> Shell:
    """How a guest of this kind is told."""
    return Windows() if system is GuestSystem.WINDOWS else Posix()


def _command(script: str, **values: str) -> list[str]:
    """Run a script in which ``@name@`` stands for a value."""
    words = _VALUE.sub(lambda found: "'" + values[found[1]].replace("'", "''") + "'", " ".join(script.split()))
    return [*_POWERSHELL, "-Command", words]
