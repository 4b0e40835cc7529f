"""Library errors: what nbdkit and the vendor's disk library said, in words for the operator.

By NBD comes only that an export cannot be opened, or that a read failed. The reason is among what nbdkit wrote: its
own errors, the library's warnings, and the library's log, where errors have numbers (``Error 13 (You do not have
access rights to this file)``). Words are looked for as well, because not every way tells a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from understudy.errors import HostUnreachable, NotFound, PlatformError, UnderstudyError

_LINE = re.compile(r"nbdkit: (?:\S+: )?(debug|error): (.*)")
_NUMBER = re.compile(r"\bError (\d+) \(([^)]*)\)")
#: What it says of a new client. The library may have got over complaints from before.
_CONNECTED = "nbdkit: debug: accepted connection"
#: What says nothing of the cause: a client went away.
_NOISE = ("reading initial client flags", "conn->recv", "write data: ", "write reply: ")


@dataclass(frozen=True)
class Reason:
    """Why the library did not do what was asked.

    :ivar said: its words, as one line.
    """

    kind: type[UnderstudyError]
    why: str
    todo: str
    said: str = ""


@dataclass(frozen=True)
class _Rule:
    numbers: tuple[int, ...]
    words: re.Pattern[str]
    reason: Reason


def _rule(numbers: tuple[int, ...], words: str, kind: type[UnderstudyError], why: str, todo: str) -> _Rule:
    return _Rule(numbers, re.compile(words, re.IGNORECASE), Reason(kind, why, todo))


# The first one that fits. A wrong thumbprint and a full NFC service hide behind general errors that follow.
_RULES = (
    _rule((), r"failed to verify ssl certificate|thumbprint", PlatformError,
          "the server's certificate is not the one that was confirmed",
          "if it was renewed, look at it and confirm the new one"),
    _rule((), r"failed to allocate the requested|nfc_no_memory|nfc.*(too many|out of memory)|too many sessions",
          HostUnreachable, "the ESXi host has no memory or sessions left for disk transfers",
          "move fewer disks at the same time (task slots of the proxy)"),
    _rule((3014,), r"insufficient permissions in the host|incorrect user name or password|login failed|bad credentials",
          PlatformError, "the server does not accept the user or the password, or the user lacks a right",
          "check the host's credential, and the privileges of its user"),
    _rule((13,), r"do not have access rights to this file", PlatformError, "no access to the disk's file",
          "see that no other program or running VM has the disk open, and that the user may access disks of this VM"),
    _rule((4, 20), r"a file was not found|file not found", NotFound, "there is no such disk file, or no such VM",
          "run the job again; if it fails again, look whether the file is still in its datastore"),
    _rule((8,), r"file system is full|no space left|insufficient disk space", PlatformError, "its datastore is full",
          "make space in the datastore"),
    _rule((14008, 14009, 14010, 14011),
          r"server refused connection|could not be contacted|connection was lost|failed to connect"
          r"|cannot connect to host|could not connect|nfc error",
          HostUnreachable, "the server, or the ESXi host of the disk, does not answer or ended the connection",
          "check that the proxy reaches TCP port 443 of the server and 902 of its ESXi hosts"),
    _rule((), r"cannot open plugin|cannot find plugin|nbdkit-vddk-plugin\.so: cannot open", PlatformError,
          "nbdkit's plugin for the disk library is missing",
          "install nbdkit-plugin-vddk (or nbdkit-vddk-plugin) on the proxy's host, or say where it is"),
    _rule((), r"libvixdisklib|required vddk symbol|realpath:|libdir=|cannot open shared object file", PlatformError,
          "the disk library cannot be loaded",
          "unpack the kit on the proxy's host, of a version that the plugin loads"),
)


def reason_in(said: str) -> Reason | None:
    """The reason in what nbdkit wrote since a client last connected; None if it complained of nothing."""
    since = said.rsplit(_CONNECTED, maxsplit=1)[-1]
    lines = [(match[1], match[2]) for match in map(_LINE.match, since.splitlines()) if match]
    errors = [text for level, text in lines if level == "error" and not any(noise in text for noise in _NOISE)]
    numbered = [(int(match[1]), match[2]) for _, text in lines if (match := _NUMBER.search(text))]
    refused = [text for _, text in lines if "Failed to verify SSL certificate" in text]
    if not (errors or numbered or refused):
        return None
    number, words = numbered[-1] if numbered else (0, "")
    everything = "\n".join([*errors, *refused, words])
    told = errors[-1] if errors else words or refused[-1]
    told = " ".join(told.split())
    if number:
        told = f"{told}, error {number}"
    for rule in _RULES:
        if rule.words.search(everything) or number in rule.numbers:
            return Reason(rule.reason.kind, rule.reason.why, rule.reason.todo, told)
    return Reason(PlatformError, told, "see the manual of the disk library", told)


def refusal(what: str, said: str) -> UnderstudyError:
    """The error of an export that could not be opened."""
    reason = reason_in(said)
    if reason is None:
        return PlatformError(what, "nbdkit refused without a word", "see that it works on the proxy's host")
    why = reason.why if reason.said == reason.why else f"{reason.why} ({reason.said})"
    return reason.kind(what, why, reason.todo)
