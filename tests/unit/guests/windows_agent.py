"""The QEMU guest agent of a Windows guest, as its documentation and source describe it; PowerShell only has a script.

Strict: commands and arguments that it does not have, programs that Windows does not have, and wrong orders are errors.
No PowerShell runs here: what the program itself does in a guest is not proved by this.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any

from understudy.errors import GuestError
from understudy.guests.component import powershell_component

DIRECTORY = r"C:\ProgramData\Understudy"
_POWERSHELL = ["-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass"]
#: What each command takes: a name, and whether it must be there.
_COMMANDS: dict[str, dict[str, bool]] = {
    "guest-info": {},
    "guest-get-osinfo": {},
    "guest-exec": {"path": True, "arg": False, "env": False, "input-data": False, "capture-output": False},
    "guest-exec-status": {"pid": True},
    "guest-file-open": {"path": True, "mode": False},
    "guest-file-write": {"handle": True, "buf-b64": True, "count": False},
    "guest-file-close": {"handle": True},
    "guest-fsfreeze-freeze": {},
    "guest-fsfreeze-thaw": {},
}
_WHILE_FROZEN = ("guest-info", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw")
WRITERS = (("System Writer", "[1] Stable, No error"), ("SqlServerWriter", "[1] Stable, No error"))

_ANSWERS = {
    "version": "understudy-guest\t1\n",
    "cleanup": "clean\n",
    "discover": "".join(f"app\tvss\t{name}\t{shown}\n" for name, shown in WRITERS) + "discovered\n",
    "begin": "".join(f"app\tvss\t{name}\tquiesced\t{shown}\t0\n" for name, shown in WRITERS) + "ready\n",
    "commit": "committed\n",
}


def _error(command: str, text: str) -> GuestError:
    return GuestError(f"guest agent: {command}", text)


@dataclass
class _Process:
    out: str
    err: str = ""
    status: int = 0
    captured: bool = True
    polls: int = 1
    killed: bool = False


@dataclass
class WindowsAgent:
    """One guest; :attr:`mode` says what is wrong with it.

    :ivar told: what happened in the guest, in order: verbs, freeze, thaw, killed.
    :ivar largest_write: the guest writes no more at a time.
    """

    mode: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    handles: dict[int, str] = field(default_factory=dict)
    processes: dict[int, _Process] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    verbs: list[list[str]] = field(default_factory=list)
    frozen: bool = False
    largest_write: int = 1 << 30
    next_number: int = 1000

    def __call__(self, command: str, arguments: Mapping[str, Any], timeout_s: float) -> Any:
        assert timeout_s > 0
        if command not in _COMMANDS:
            raise _error(command, f"The command {command} has not been found")
        known = _COMMANDS[command]
        for name in arguments:
            if name not in known:
                raise _error(command, f"Parameter '{name}' is unexpected")
        for name, needed in known.items():
            if needed and name not in arguments:
                raise _error(command, f"Parameter '{name}' is missing")
        if self.frozen and command not in _WHILE_FROZEN:
            raise _error(command, f"Command {command} has been disabled: the command is not allowed")
        return getattr(self, "_" + command.replace("-", "_"))(arguments)

    def freeze(self, timeout_s: float) -> int:
        """As :class:`understudy.guests.freezing.FileSystems`."""
        return int(self("guest-fsfreeze-freeze", {}, timeout_s))

    def thaw(self, timeout_s: float) -> int:
        """As :class:`understudy.guests.freezing.FileSystems`."""
        return int(self("guest-fsfreeze-thaw", {}, timeout_s))

    def left(self) -> list[str]:
        """What is in the guest that was not there before, an empty directory aside."""
        return [*self.files, *map(str, self.handles.values()), *map(str, self.processes)]

    # --- commands -----------------------------------------------------------------------------------------------------

    def _guest_info(self, _: Mapping[str, Any]) -> Any:
        return {"version": "8.2.0", "supported_commands": [
            {"name": name, "enabled": True, "success-response": True} for name in _COMMANDS]}  # fmt: skip

    def _guest_get_osinfo(self, _: Mapping[str, Any]) -> Any:
        return {"id": "mswindows", "name": "Microsoft Windows", "version-id": "2019", "variant-id": "server",
                "kernel-release": "17763", "kernel-version": "10.0", "machine": "x86_64"}

    def _guest_exec(self, arguments: Mapping[str, Any]) -> Any:
        path, words = arguments["path"], list(arguments.get("arg", []))
        assert not any('"' in word or "\n" in word for word in words)
        assert sum(map(len, words)) < 32000  # a command line of Windows
        if path == "taskkill.exe":
            process = self._taskkill(words)
        elif path == "powershell.exe":
            process = self._powershell(words)
        else:
            raise _error("guest-exec", "Failed to execute child process (No such file or directory)")
        process.captured = bool(arguments.get("capture-output"))
        self.next_number += 4
        self.processes[self.next_number] = process
        return {"pid": self.next_number}

    def _guest_exec_status(self, arguments: Mapping[str, Any]) -> Any:
        process = self.processes.get(arguments["pid"])
        if process is None:
            raise _error("guest-exec-status", f"PID {arguments['pid']} does not exist")
        if process.polls:
            process.polls -= 1
            return {"exited": False}
        del self.processes[arguments["pid"]]
        # The agent tells an exception of NT as a signal, as the 32-bit number that it is.
        answer: dict[str, Any] = {"exited": True, "signal" if process.status < 0 else "exitcode": process.status}
        for name, text in (("out-data", process.out), ("err-data", process.err)):
            if text and process.captured:
                answer[name] = base64.b64encode(text.encode()).decode()
        return answer

    def _guest_file_open(self, arguments: Mapping[str, Any]) -> Any:
        path = PureWindowsPath(arguments["path"])
        if str(path.parent).lower() not in self.directories:
            raise _error("guest-file-open", f"failed to open file '{path}': The system cannot find the path specified.")
        assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name)
        assert arguments["mode"] == "w"
        self.next_number += 1
        self.handles[self.next_number] = str(path).lower()
        self.files[str(path).lower()] = b""
        return self.next_number

    def _guest_file_write(self, arguments: Mapping[str, Any]) -> Any:
        data = base64.b64decode(arguments["buf-b64"], validate=True)[: self.largest_write]
        if self.mode == "disk is full":
            raise _error("guest-file-write", "failed to write to file: There is not enough space on the disk.")
        self.files[self.handles[arguments["handle"]]] += data
        return {"count": len(data), "eof": False}

    def _guest_file_close(self, arguments: Mapping[str, Any]) -> Any:
        if self.handles.pop(arguments["handle"], None) is None:
            raise _error("guest-file-close", f"handle '{arguments['handle']}' has not been found")
        return {}

    def _guest_fsfreeze_freeze(self, _: Mapping[str, Any]) -> Any:
        self.told.append("freeze")
        if self.mode == "freeze fails":
            raise _error("guest-fsfreeze-freeze", "couldn't receive Frozen event from VSS provider")
        self.frozen = True
        return 2

    def _guest_fsfreeze_thaw(self, _: Mapping[str, Any]) -> Any:
        self.told.append("thaw")
        was, self.frozen = self.frozen, False
        if self.mode == "hold expires":
            raise _error("guest-fsfreeze-thaw", "couldn't hold writes: fsfreeze is limited up to 10 seconds")
        return 2 if was else 0

    # --- programs -----------------------------------------------------------------------------------------------------

    def _taskkill(self, words: list[str]) -> _Process:
        assert words[:3] == ["/T", "/F", "/PID"]
        self.processes[int(words[3])].killed = True
        self.processes[int(words[3])].polls = 1
        self.told.append("killed")
        return _Process("SUCCESS")

    def _powershell(self, words: list[str]) -> _Process:
        assert words[:4] == _POWERSHELL
        assert not self.handles, "Windows does not read a file that is open for writing"
        if words[4] == "-Command" and len(words) == 6:
            return self._command(words[5])
        assert words[4] == "-File"
        if words[5].lower() not in self.files:
            return _Process("", f"The argument '{words[5]}' to the -File parameter does not exist.", 64)
        assert self.files[words[5].lower()] == powershell_component()
        if self.mode == "policy forbids":
            return _Process("", f"File {words[5]} cannot be loaded. The file is not digitally signed.", 1)
        return self._program(words[6:])

    def _command(self, script: str) -> _Process:
        """The two scripts around the program, by their marks."""
        *_, pattern = re.finditer(r"-Filter \('([^']*)' \+ '([^']*)'\)", script)
        if "CreateDirectory" in script:
            assert "D:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)" in script
            if self.mode == "directory of another":
                return _Process("", rf"{DIRECTORY} belongs to S-1-5-21-1-2-3-1001", 1)
            self.directories.add(DIRECTORY.lower())
            self._delete(pattern[1])
            return _Process(f"directory\t{DIRECTORY}\n")
        assert f"-LiteralPath '{DIRECTORY}'" in script
        assert pattern[2] == ".*"
        self._delete(pattern[1] + ".")
        return _Process("")

    def _delete(self, start: str) -> None:
        for path in [path for path in self.files if PureWindowsPath(path).name.startswith(start)]:
            del self.files[path]

    def _program(self, words: list[str]) -> _Process:
        verb = words[0]
        if verb != "version":
            self.told.append(verb)
        self.verbs.append(words)
        if self.mode == "crashes in " + verb:
            return _Process("", "", -1073741819)
        if self.mode == "hangs in " + verb:
            return _Process("", polls=1 << 30)
        if verb == "begin":
            assert words[3:] in ([], ["--no-applications"])
        if verb == "run":
            return self._run(words)
        if verb not in _ANSWERS and verb != "end":
            return _Process("", "usage: version | discover | begin | end | commit | run | cleanup", 1)
        left = "removed\tunderstudy-j1-00000000-3\n" if (verb, self.mode) == ("cleanup", "left") else ""
        return _Process(left + (self._ended() if verb == "end" else _ANSWERS[verb]))

    def _ended(self) -> str:
        bad = "app\tvss\tSqlServerWriter\tfailed\t[8] Failed, Non-retryable error\n"
        good = "app\tvss\tSqlServerWriter\tthawed\t[1] Stable, No error\n"
        return ("app\tvss\tSystem Writer\tthawed\t[5] Waiting for completion, No error\n"
                + (bad if self.mode == "writer fails" else good) + "ended\n")

    def _run(self, words: list[str]) -> _Process:
        _, _, limit, path = words
        if not path.lower().endswith((".ps1", ".cmd", ".bat")):
            return _Process("", "a script for a Windows guest ends with .ps1, .cmd or .bat", 1)
        assert int(limit) > 0
        status = int(self.files[path.lower()] or b"0")
        return _Process(f"exit\t{status}\noutput\tbm8=\n")


@contextmanager
def nothing_left(agent: WindowsAgent) -> Iterator[WindowsAgent]:
    """Prove that the guest is as it was before the context, and thawed."""
    before = agent.left()
    yield agent
    assert agent.left() == before
    assert not agent.frozen
