"""The program that works inside a guest: how it gets there, what it is told, what it answers, how it leaves.

It is one self-contained file: of POSIX sh, or of PowerShell for a Windows guest. Its answers are lines of words
separated by tabs; the last line of a verb's answer shows that it is complete. Whatever it says is checked here: a guest
is not trusted.
"""

from __future__ import annotations

import base64
import binascii
import functools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from understudy.errors import GuestError
from understudy.guests.shells import shell_of
from understudy.guests.transport import Completed, Transport, go_on
from understudy.model.guest import (
    DEFAULT_APPLICATIONS_PERCENT,
    ApplicationResult,
    ApplicationState,
    Component,
    GuestSettings,
    GuestSystem,
)

LOG = logging.getLogger(__name__)

PROTOCOL = "1"
#: Where an installed one is; used instead of a copy if it speaks this protocol.
AGENT_PATH = "/usr/local/lib/understudy/understudy-guest"

_PREPARE_S = 15.0
_VERSION_S = 10.0
_DISCOVER_S = 20.0
_CLEANUP_S = 20.0
_REMOVE_S = 20.0
# The program ends a script at its limit; this is for its own work around that.
_SCRIPT_GRACE_S = 5.0
_MAX_LINES = 1000
_MAX_WORD = 500
_MAX_LABEL = 64 << 10
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
# What is more than that may mean something to the guest's shell.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Begun:
    """What ``begin`` did: what came of each application, and how many file systems are frozen.

    :ivar unwatched: why the watchdog in the guest cannot thaw file systems; empty if it can.
    """

    applications: tuple[ApplicationResult, ...]
    file_systems: int
    unwatched: str = ""


@dataclass(frozen=True)
class Ended:
    """What ``end`` did.

    :ivar applications: those that were thawed, or not, by ``(kind, name)``; their labels by the same.
    :ivar expired_s: the guest had thawed by itself that long after the begin; None if it had not.
    """

    applications: tuple[ApplicationResult, ...]
    file_systems: int
    expired_s: float | None


class Program:
    """The program in one guest, ready to be told verbs. They raise :class:`GuestError`."""

    def __init__(self, transport: Transport, key: str, path: str, directory: str, component: Component) -> None:
        self._transport = transport
        self._shell = shell_of(transport.system)
        self._key = key
        self._path = path
        self._directory = directory
        self._finish: Callable[[float], Completed] | None = None
        self.component = component
        self.version = ""

    def check_version(self) -> None:
        """:raises GuestError: if it does not answer, or speaks another protocol."""
        words = self._tell("version", (), _VERSION_S)
        if len(words) != 1 or words[0] != ["understudy-guest", PROTOCOL]:
            said = "\t".join(words[0]) if words else "nothing"
            raise GuestError(f"program {self._path} in the guest", f"it speaks another protocol: {said!r}",
                             "install it again: understudy guest install-agent JOB VM")
        self.version = words[0][1]

    def cleanup(self, prefix: str) -> list[str]:
        """End and thaw what crashed sessions left whose keys begin with ``prefix``; says what it removed."""
        lines = self._tell("cleanup", (prefix,), _CLEANUP_S, "clean")
        return [" ".join(words[1:]) for words in lines if words[0] == "removed"]

    def discover(self) -> tuple[tuple[str, str, str], ...]:
        """The applications in the guest: kind, name, detail."""
        found = []
        for words in self._tell("discover", (), _DISCOVER_S, "discovered"):
            _expect(words, "app", 4)
            found.append((_kind(words[1]), words[2], words[3]))
        return tuple(found)

    def begin(self, settings: GuestSettings, timeout_s: float, file_systems: bool, applications: bool) -> Begun:
        """Freeze applications, then file systems if wished.

        At the deadline of the settings the guest thaws by itself, also file systems that somebody else froze.
        """
        options = [*(["--fs"] if file_systems else []), *([] if applications else ["--no-applications"])]
        # A program that was installed earlier may not know the word; it watches all the same.
        if applications and settings.applications_percent != DEFAULT_APPLICATIONS_PERCENT:
            options.append(f"--share={settings.applications_percent}")
        begin, end = (self._shell.program(self._path, words) for words in (
            ["begin", self._key, str(settings.freeze_deadline_s), *options], ["end", self._key]))  # fmt: skip
        done, self._finish = self._transport.run_pair(begin, end, timeout_s + self._shell.start_s)
        lines = _answer("begin in the guest", done, "ready")
        results, count, unwatched = [], 0, ""
        for words in lines:
            if words[0] == "unwatched":
                _expect(words, "unwatched", 2)
                unwatched = words[1]
                continue
            if words[0] == "fs":
                _expect(words, "fs", 3)
                count = _number(words[1])
                continue
            _expect(words, "app", 6)
            results.append(ApplicationResult(_kind(words[1]), words[2], _state(words[3], "quiesced"), words[4]))
        return Begun(tuple(results), count, unwatched)

    def end(self, timeout_s: float) -> Ended:
        """Thaw everything that ``begin`` froze."""
        finish, self._finish = self._finish, None
        if finish is None:
            finish = functools.partial(self._transport.run, self._shell.program(self._path, ["end", self._key]))
        done = finish(timeout_s + self._shell.start_s)
        results: dict[tuple[str, str], ApplicationResult] = {}
        count, expired = 0, None
        for words in _answer("end in the guest", done, "ended"):
            match words[0]:
                case "fs":
                    _expect(words, "fs", 2)
                    count = _number(words[1])
                case "expired":
                    _expect(words, "expired", 2)
                    expired = float(_number(words[1]))
                case "label":
                    _expect(words, "label", 4)
                    key = (_kind(words[1]), words[2])
                    blank = ApplicationResult(*key, ApplicationState.QUIESCED)
                    results[key] = replace(results.get(key, blank), label=_label(words[3]))
                case _:
                    _expect(words, "app", 5)
                    key = (_kind(words[1]), words[2])
                    label = results[key].label if key in results else ""
                    results[key] = ApplicationResult(*key, _state(words[3], "thawed"), words[4], label)
        return Ended(tuple(results.values()), count, expired)

    def commit(self, timeout_s: float) -> None:
        """The point is safe: what the applications kept for it may go."""
        self._tell("commit", (self._key,), timeout_s, "committed")

    def script(self, name: str, content: bytes, timeout_s: float, check: Callable[[], object] = go_on) -> int:
        """Run a script of the administrator in the guest; its exit status."""
        path = self.place(f"script-{name}", content)
        what = (self._key, str(int(timeout_s)), path)
        lines = self._tell("run", what, timeout_s + _SCRIPT_GRACE_S, check=check)
        ended = [words for words in lines if words[0] != "output"]
        for words in lines:
            if words[0] == "output":
                _expect(words, "output", 2)
                LOG.info("script %s in the guest wrote: %s", name, _bytes(words[1]).decode(errors="replace"))
        if len(ended) != 1:
            raise GuestError("script in the guest", "its exit status is not known")
        _expect(ended[0], "exit", 2)
        return _number(ended[0][1])

    def place(self, name: str, content: bytes) -> str:
        """Put a file into the program's directory, removed when it leaves; its path."""
        path = str(self._shell.path(self._directory) / f"{self._key}.{_UNSAFE.sub('_', name)}")
        self._transport.put(path, content, 0o700, _PREPARE_S)
        return path

    def remove(self) -> None:
        """End what still runs in the guest, and take away all files that were put there."""
        answers = self._path if self.version else ""
        words = self._shell.leave(self._directory, self._key, answers)
        done = self._transport.run(words, _REMOVE_S + self._shell.start_s)
        _must(done.status, done.stderr, f"remove {self._key} from directory {self._directory} of the guest")

    def _tell(
        self, verb: str, arguments: Sequence[str], timeout_s: float, last: str = "",
        check: Callable[[], object] = go_on,
    ) -> list[list[str]]:
        """The lines of the answer in words, without the last one, which must be ``last`` if that is not empty."""
        words = self._shell.program(self._path, [verb, *arguments])
        done = self._transport.run(words, timeout_s + self._shell.start_s, check=check)
        return _answer(f"{verb} in the guest", done, last)


def prepare_program(
    transport: Transport, key: str, prefix: str, content: Callable[[GuestSystem], bytes]
) -> Program:
    """Find the installed program in the guest, or put one there that leaves with the session.

    :param key: names this session in the guest; ``prefix`` is what all sessions of the job for this VM share.
    :param content: the program for a kind of guest.
    :raises GuestError: if the guest has no shell for it, has no room, or what runs there answers wrongly.
    """
    shell = shell_of(transport.system)
    done = transport.run(shell.prepare(prefix), _PREPARE_S + shell.start_s)
    _must(done.status, done.stderr, "make a directory in the guest")
    lines = _lines("make a directory in the guest", done.stdout)
    if len(lines) != 1 or lines[0][:1] != ["directory"] or not shell.path(lines[0][-1]).is_absolute():
        raise GuestError("make a directory in the guest", "the answer is not understood")
    directory = lines[0][1]
    if _has_agent(transport):
        installed = Program(transport, key, AGENT_PATH, directory, Component.AGENT)
        try:
            installed.check_version()
        except GuestError as exc:  # the copy does its work
            LOG.warning("%s", exc)
        else:
            return installed
    path = str(shell.path(directory) / f"{key}{shell.suffix}")
    program = Program(transport, key, path, directory, Component.RUNTIME)
    try:
        transport.put(path, content(transport.system), 0o700, _PREPARE_S)
        program.check_version()
    except BaseException:
        program.remove()
        raise
    return program


def _has_agent(transport: Transport) -> bool:
    """Whether a program is installed for good, which is not done in Windows guests."""
    if transport.system is GuestSystem.WINDOWS:
        return False
    return transport.run(["/bin/sh", "-c", f"test -f {AGENT_PATH}"], _VERSION_S).status == 0


def _answer(what: str, done: Completed, last: str) -> list[list[str]]:
    """The lines of an answer in words, without the last one, which must be ``last`` if that is not empty."""
    _must(done.status, done.stderr, what)
    lines = _lines(what, done.stdout)
    if last and (not lines or lines.pop() != [last]):
        raise GuestError(what, "its answer is not complete")
    return lines


def _must(status: int, stderr: bytes, what: str) -> None:
    if status != 0:
        said = " ".join(stderr.decode(errors="replace").split())[-_MAX_WORD:]
        raise GuestError(what, f"status {status}: {said or 'no reason given'}")


def _lines(what: str, output: bytes) -> list[list[str]]:
    try:
        text = output.decode()
    except UnicodeDecodeError as exc:
        raise GuestError(what, "its answer is not UTF-8") from exc
    rows = text.splitlines() if text.endswith("\n") or not text else [""]
    lines = [row.split("\t") for row in rows]
    if len(lines) > _MAX_LINES or any(not words[0] for words in lines):
        raise GuestError(what, "its answer is not complete, or not understood")
    for words in lines:
        longest = _MAX_LABEL * 2 if words[0] in ("label", "output") else _MAX_WORD
        if any(len(word) > longest or not word.isprintable() for word in words):
            raise GuestError(what, "its answer is not understood")
    return lines


def _expect(words: list[str], word: str, count: int) -> None:
    if words[0] != word or len(words) != count:
        raise GuestError("program in the guest", f"it answered {' '.join(words)!r:.80}, which is not understood")


def _kind(word: str) -> str:
    if not _KIND.fullmatch(word):
        raise GuestError("program in the guest", f"{word!r:.40} is not a kind of application")
    return word


def _state(word: str, good: str) -> ApplicationState:
    if word not in (good, "failed"):
        raise GuestError("program in the guest", f"{word!r:.40} is not a state of an application")
    return ApplicationState.QUIESCED if word == good else ApplicationState.FAILED


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        raise GuestError("program in the guest", f"{word!r:.40} is not a number")
    return int(word)


def _label(word: str) -> str:
    try:
        return _bytes(word).decode()
    except UnicodeDecodeError as exc:
        raise GuestError("program in the guest", "a label is not text") from exc


def _bytes(word: str) -> bytes:
    try:
        return base64.b64decode(word, validate=True)
    except binascii.Error as exc:
        raise GuestError("program in the guest", "its answer is not base64") from exc
