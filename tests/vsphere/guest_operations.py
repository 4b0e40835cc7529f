"""Guest operations: what VMware Tools do in a guest, done in a stand-in for one; files by URLs that are good for once.

Each call is a login, as with real Tools. `StandIn.log` is a file in the guest that each login writes to: if its file
system is frozen, the call waits for the thaw, as real Tools may.
"""

from __future__ import annotations

import secrets
import shlex
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pyVmomi import vim
from pyVmomi.VmomiSupport import GetVmodlType

from tests.unit.guests.component.private_guest import PrivateGuest
from tests.vsphere import soap
from tests.vsphere.client import Client

_KINDS = ("GuestProcessManager", "GuestFileManager")
_TOOLS = "guest.toolsRunningStatus"
# The number of the process first: it keeps that whatever it runs.
_START = 'echo $$; exec /bin/sh -c "$1" >/dev/null 2>&1'


class Refused(Exception):
    """The call is answered with a fault."""

    def __init__(self, fault: Any) -> None:
        super().__init__(fault)
        self.fault = fault


@dataclass
class StandIn:
    """A guest: where its programs run, who may log in, and the programs that were started."""

    machine: PrivateGuest
    passwords: dict[str, str]
    log: str = ""
    started: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    def sh(self, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run something there."""
        return subprocess.run(self.machine.entering(*words), input=data, capture_output=True, check=False, timeout=120)

    def test(self, flag: str, path: str) -> bool:
        """As the shell's `test`."""
        return self.sh("test", flag, path).returncode == 0


@dataclass(frozen=True)
class _Ticket:
    guest: StandIn
    method: str
    path: str
    size: int = 0
    mode: str = ""


class Guests:
    """The guests of a front, by the moref of their VM. `address` is where its URLs lead to."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._guard = threading.Lock()
        self._tickets: dict[str, _Ticket] = {}
        self.known: dict[str, StandIn] = {}
        self.address = "*"
        self.port = 0
        self._of: dict[str, Callable[[soap.Request, StandIn], soap.Answer]] = {
            "StartProgramInGuest": self._start,
            "ListProcessesInGuest": self._list,
            "TerminateProcessInGuest": self._terminate,
            "CreateTemporaryDirectoryInGuest": self._make_directory,
            "ChangeFileAttributesInGuest": self._change,
            "DeleteDirectoryInGuest": self._remove_directory,
            "InitiateFileTransferToGuest": self._to_guest,
            "InitiateFileTransferFromGuest": self._from_guest,
        }

    def concerned(self, request: soap.Request) -> bool:
        """Whether the call is for a guest."""
        return request.kind in _KINDS and request.method in self._of

    def answer(self, request: soap.Request) -> soap.Answer:
        """The answer to such a call."""
        try:
            return self._of[request.method](request, self._guest(request))
        except Refused as exc:
            return soap.refused(exc.fault)

    def transfer(self, method: str, url: str, body: bytes) -> tuple[int, bytes]:
        """Status and content of the answer to a transfer."""
        token = parse_qs(urlsplit(url).query).get("token", [""])[0]
        with self._guard:
            ticket = self._tickets.pop(token, None)
        if ticket is None or ticket.method != method or (method == "PUT" and len(body) != ticket.size):
            return 403, b""
        path = shlex.quote(ticket.path)
        if method == "GET":
            done = ticket.guest.sh("cat", ticket.path)
        else:
            script = f"umask 077; rm -f {path}; cat >{path} && chmod {ticket.mode} {path}"
            done = ticket.guest.sh("/bin/sh", "-c", script, data=body)
        return (200, done.stdout) if done.returncode == 0 else (500, b"")

    def close(self) -> None:
        """End what still runs in guests."""
        for guest in self.known.values():
            for pid, process in guest.started.items():
                if process.poll() is None:
                    guest.sh("kill", "-9", str(pid))
                process.wait(timeout=30)

    def _guest(self, request: soap.Request) -> StandIn:
        """The guest, after its user has logged in."""
        moref = request.text("vm") or ""
        seen = self._client.properties(vim.VirtualMachine(moref, self._client.stub), _TOOLS)
        guest = self.known.get(moref)
        if guest is None or seen.get(_TOOLS) != "guestToolsRunning":
            raise Refused(vim.fault.GuestOperationsUnavailable(msg="The agent could not be contacted."))
        user, password = request.text("auth", "username") or "", request.text("auth", "password")
        if password is None or guest.passwords.get(user) != password:
            raise Refused(vim.fault.InvalidGuestLogin(msg="Failed to authenticate with the guest operating system."))
        if guest.log:
            guest.sh("/bin/sh", "-c", f"echo {user} >>{shlex.quote(guest.log)}")
        return guest

    def _start(self, request: soap.Request, guest: StandIn) -> soap.Answer:
        program, arguments = request.text("spec", "programPath") or "", request.text("spec", "arguments") or ""
        if not guest.test("-x", program):
            raise Refused(vim.fault.FileNotFound(file=program, msg="File not found."))
        process = subprocess.Popen(
            guest.machine.entering("/bin/sh", "-c", _START, "sh", f"{program} {arguments}"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.stdout.close()
        guest.started[pid] = process
        return soap.returned(request.method, pid, GetVmodlType("long"))

    def _list(self, request: soap.Request, guest: StandIn) -> soap.Answer:
        found = []
        for pid in [int(item.text or "") for item in request.all("pids")]:
            if (process := guest.started.get(pid)) is None:
                continue
            status, now = process.poll(), datetime.now(tz=UTC)
            found.append(vim.vm.guest.ProcessManager.ProcessInfo(
                name="sh", pid=pid, owner=request.text("auth", "username"), cmdLine="sh", startTime=now,
                endTime=None if status is None else now, exitCode=status))  # fmt: skip
        return soap.returned(request.method, found, GetVmodlType("vim.vm.guest.ProcessManager.ProcessInfo[]"))

    def _terminate(self, request: soap.Request, guest: StandIn) -> soap.Answer:
        pid = request.text("pid") or ""
        if guest.sh("kill", "-9", pid).returncode != 0:
            raise Refused(vim.fault.GuestProcessNotFound(pid=int(pid), msg="No such process."))
        return _done(request)

    def _make_directory(self, request: soap.Request, guest: StandIn) -> soap.Answer:
        """One that everybody may enter: nothing tells that Tools are more careful."""
        parent = request.text("directoryPath") or "/tmp"
        self._must_be(guest, "-d", parent)
        template = f"{parent}/{request.text('prefix')}XXXXXX{request.text('suffix')}"
        made = guest.sh("mktemp", "-d", template).stdout.decode().strip()
        guest.sh("chmod", "755", made)
        return soap.returned(request.method, made, str)

    def _change(self, request: soap.Request, guest: StandIn) -> soap.Answer:
        path = request.text("guestFilePath") or ""
        self._must_be(guest, "-e", path)
        guest.sh("chmod", f"{int(request.text('fileAttributes', 'permissions') or 0):o}", path)
        return _done(request)

    def _remove_directory(self, request: soap.Request, guest: StandIn) -> soap.Answer:
        path = request.text("directoryPath") or ""
        self._must_be(guest, "-d", path)
        guest.sh(*(["rm", "-rf"] if request.flag("recursive") else ["rmdir"]), path)
        return _done(request)

    def _to_guest(self, request: soap.Request, guest: StandIn) -> soap.Answer:
        path = request.text("guestFilePath") or ""
        self._must_be(guest, "-d", path.rpartition("/")[0])
        if not request.flag("overwrite") and guest.test("-e", path):
            raise Refused(vim.fault.FileAlreadyExists(file=path, msg="File already exists."))
        mode = f"{int(request.text('fileAttributes', 'permissions') or 0o644):o}"
        url = self._url(_Ticket(guest, "PUT", path, int(request.text("fileSize") or 0), mode))
        return soap.returned(request.method, url, str)

    def _from_guest(self, request: soap.Request, guest: StandIn) -> soap.Answer:
        path = request.text("guestFilePath") or ""
        self._must_be(guest, "-f", path)
        size = int(guest.sh("stat", "-c", "%s", path).stdout)
        told = vim.vm.guest.FileManager.FileTransferInformation(
            attributes=vim.vm.guest.FileManager.PosixFileAttributes(permissions=0o600), size=size,
            url=self._url(_Ticket(guest, "GET", path)),
        )  # fmt: skip
        return soap.returned(request.method, told, vim.vm.guest.FileManager.FileTransferInformation)

    def _must_be(self, guest: StandIn, flag: str, path: str) -> None:
        if not guest.test(flag, path):
            raise Refused(vim.fault.FileNotFound(file=path, msg="File not found."))

    def _url(self, ticket: _Ticket) -> str:
        token = secrets.token_urlsafe(16)
        with self._guard:
            self._tickets[token] = ticket
        return f"https://{self.address}:{self.port}/guestFile?id=1&token={token}"


def _done(request: soap.Request) -> soap.Answer:
    """The answer of a call that returns nothing."""
    return soap.returned(request.method, [], None)
