"""Guest operations of VMware Tools: programs and small files in a guest, as a user of it whose password is given.

Each call carries user and password, and the guest checks them each time. They are in no message and no log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pyVmomi import vim

from understudy.errors import GuestError, UnderstudyError
from understudy.model.guest import GuestSystem
from understudy.model.guest_operations import GuestLogin
from understudy.platforms.vsphere import properties
from understudy.platforms.vsphere.faults import fault_text
from understudy.platforms.vsphere.guest_files import GuestFiles
from understudy.platforms.vsphere.machine import Machine

T = TypeVar("T")

_TOOLS, _FAMILY, _HOST = "guest.toolsRunningStatus", "guest.guestFamily", "runtime.host"
_RUNNING, _WINDOWS = "guestToolsRunning", "windowsGuest"
_PREFIX = "understudy-vmtools"
# Nothing says that a program went well whose status is not told.
_UNKNOWN_STATUS = -1
_OWNER_ONLY, _OWNER_ENTERS = 0o600, 0o700

# The first entry that fits counts: many are kinds of others.
_MEANINGS: tuple[tuple[Any, str, str], ...] = (
    (vim.fault.InvalidGuestLogin, "the guest refuses user and password",
     "store the right ones: understudy credential add, and understudy job guest JOB --credential NAME"),
    (vim.fault.GuestPermissionDenied, "the guest does not permit this to the user",
     "use a user with all rights there"),
    (vim.fault.GuestMultipleMappings, "the guest knows several users for this login", "use a user and a password"),
    (vim.fault.TooManyGuestLogons, "too many users are logged on in the guest", "try again later"),
    (vim.fault.OperationDisabledByGuest, "guest operations are switched off in the guest's VMware Tools",
     "allow them in tools.conf of the guest, or use SSH"),
    (vim.fault.OperationNotSupportedByGuest, "the guest, or its VMware Tools, cannot do this",
     "update VMware Tools there, or use SSH"),
    (vim.fault.GuestComponentsOutOfDate, "VMware Tools in the guest are too old", "update them, or use SSH"),
    (vim.fault.GuestProcessNotFound, "the guest does not know the process any more", ""),
    (vim.fault.GuestOperationsUnavailable, "VMware Tools in the guest do not answer, or are not ready",
     "install VMware Tools in the guest, and see that they run"),
    (vim.fault.ToolsUnavailable, "VMware Tools do not run in the guest", "install and start them in the guest"),
    (vim.fault.InvalidPowerState, "the VM does not run", ""),
    (vim.fault.FileNotFound, "the guest has no such file", ""),
    (vim.fault.FileAlreadyExists, "the guest has such a file already", ""),
    (vim.fault.NoDiskSpace, "the guest has no room for the file", "make room there"),
    (vim.fault.CannotAccessFile, "the guest does not let the user at the file", "use a user with all rights there"),
)  # fmt: skip


class VsphereGuestOperations:
    """Implements :class:`understudy.model.guest_operations.GuestOperations`."""

    def __init__(self, machine: Machine, login: GuestLogin) -> None:
        """:raises UnderstudyError: if the VM is gone, or the server does not answer.

        :raises GuestError: if VMware Tools do not run in the guest.
        """
        self._machine = machine
        self.user = login.user
        self._auth = vim.vm.guest.NamePasswordAuthentication(
            username=login.user, password=login.password, interactiveSession=False
        )
        seen = machine.get(_TOOLS, _FAMILY)
        if seen.get(_TOOLS) != _RUNNING:
            raise GuestError(f"VM {machine.name!r}", "VMware Tools do not run in the guest",
                             "install and start them in the guest, or use SSH")  # fmt: skip
        self.system = GuestSystem.WINDOWS if seen.get(_FAMILY) == _WINDOWS else GuestSystem.POSIX
        connection = machine.connection
        manager = connection.content.guestOperationsManager
        found = properties.of(connection, manager, ["processManager", "fileManager"])
        self._processes, self._in_guest = found.get("processManager"), found.get("fileManager")
        self._files = GuestFiles(connection, self._host_certificate)

    def start(self, program: str, arguments: str) -> int:
        """On Linux Tools have a shell run it."""
        spec = vim.vm.guest.ProcessManager.ProgramSpec(programPath=program, arguments=arguments)
        return int(self._act(f"start {program}", lambda: self._processes.StartProgramInGuest(*self._who, spec)))

    def ended(self, pid: int) -> int | None:
        """The guest knows it for five minutes after its end."""
        what = f"ask for process {pid}"
        found = self._read(what, lambda: self._processes.ListProcessesInGuest(*self._who, [pid]))
        process = next((item for item in found or () if item.pid == pid), None)
        if process is None:
            raise GuestError(self._what(what), "the guest does not know the process any more")
        if process.endTime is None:
            return None
        return _UNKNOWN_STATUS if process.exitCode is None else int(process.exitCode)

    def terminate(self, pid: int) -> None:
        """Kill it."""
        try:
            self._act(f"end process {pid}", lambda: self._processes.TerminateProcessInGuest(*self._who, pid))
        except GuestError as exc:
            if not isinstance(_cause(exc), vim.fault.GuestProcessNotFound):
                raise

    def put(self, path: str, content: bytes) -> None:
        """The guest makes it with that mode, from the start."""
        attributes = vim.vm.guest.FileManager.FileAttributes()
        if self.system is GuestSystem.POSIX:
            attributes = vim.vm.guest.FileManager.PosixFileAttributes(permissions=_OWNER_ONLY)
        call, size, what = self._in_guest.InitiateFileTransferToGuest, len(content), f"write {path}"
        url = self._act(what, lambda: call(*self._who, path, attributes, size, True))
        self._files.send(self._what(what), url, content)

    def get(self, path: str, limit: int) -> bytes:
        """As it is now."""
        what = f"read {path}"
        told = self._read(what, lambda: self._in_guest.InitiateFileTransferFromGuest(*self._who, path))
        return self._files.fetch(self._what(what), told.url, limit) if told.size else b""

    def make_directory(self, parent: str) -> str:
        """By a name that nobody had."""
        make = self._in_guest.CreateTemporaryDirectoryInGuest
        path = str(self._act("make a directory", lambda: make(*self._who, _PREFIX, "", parent)))
        if self.system is GuestSystem.POSIX:
            # Tools are said to make it so; nothing tells for certain.
            mode = vim.vm.guest.FileManager.PosixFileAttributes(permissions=_OWNER_ENTERS)
            change = self._in_guest.ChangeFileAttributesInGuest
            self._act(f"protect {path}", lambda: change(*self._who, path, mode))
        return path

    def remove_directory(self, path: str) -> None:
        """Whatever is in it."""
        self._act(f"remove {path}", lambda: self._in_guest.DeleteDirectoryInGuest(*self._who, path, True))

    @property
    def _who(self) -> tuple[Any, Any]:
        return self._machine.ref, self._auth

    def _host_certificate(self) -> list[int]:
        host = self._machine.get(_HOST).get(_HOST)
        if host is None:
            return []
        name = "config.certificate"
        return list(properties.of(self._machine.connection, host, [name]).get(name) or ())

    def _what(self, act: str) -> str:
        return f"{act} in the guest of VM {self._machine.name!r}"

    def _read(self, act: str, call: Callable[[], T]) -> T:
        return _told(self._what(act), lambda what: self._machine.connection.read(what, call))

    def _act(self, act: str, call: Callable[[], T]) -> T:
        return _told(self._what(act), lambda what: self._machine.connection.act(what, call))


def open_guest_operations(find: Callable[[], Machine], login: GuestLogin) -> VsphereGuestOperations:
    """Guest operations in the VM that ``find`` finds.

    :raises GuestError: for whatever is in the way.
    """
    return _told("guest operations", lambda _: VsphereGuestOperations(find(), login))


def guest_error(what: str, error: UnderstudyError) -> GuestError:
    """What an error of the platform means for somebody who works in a guest."""
    if isinstance(error, GuestError):
        return error
    fault = error.__cause__
    for kind, meaning, todo in _MEANINGS:
        if isinstance(fault, kind):
            return GuestError(what, f"{meaning} ({fault_text(fault)})", todo)
    return GuestError(what, str(error))


def _cause(error: GuestError) -> BaseException | None:
    """The fault of the server behind an error of ours."""
    return error.__cause__.__cause__ if error.__cause__ is not None else None


def _told(what: str, call: Callable[[str], T]) -> T:
    try:
        return call(what)
    except GuestError:
        raise
    except UnderstudyError as exc:
        raise guest_error(what, exc) from exc
