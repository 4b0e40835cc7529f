"""What each fault of vSphere becomes."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim, vmodl

from understudy.errors import HostUnreachable, NotFound, PlatformError, Refused, UnderstudyError, UsageError
from understudy.platforms.vsphere.faults import (
    AnswerNotUnderstood,
    ConnectionLost,
    Remedy,
    converted,
    fault_text,
    remedy,
)

VM = vim.VirtualMachine("vm-42")


@pytest.mark.parametrize(
    ("fault", "helps"),
    [
        (vim.fault.NotAuthenticated(), Remedy.LOGIN),
        (vim.fault.NoPermission(), Remedy.PERMANENT),
        (vim.fault.TaskInProgress(), Remedy.WAIT),
        (vim.fault.ConcurrentAccess(), Remedy.WAIT),
        (vim.fault.FileLocked(), Remedy.WAIT),
        (vim.fault.InvalidPowerState(), Remedy.PERMANENT),
        (vmodl.fault.HostNotConnected(), Remedy.RETRY),
        (vmodl.fault.HostNotReachable(), Remedy.RETRY),
        (vim.fault.Timedout(), Remedy.RETRY),
        (ConnectionLost("reset", sent=True), Remedy.RETRY),
        (AnswerNotUnderstood("?"), Remedy.PERMANENT),
        (vim.fault.InvalidLogin(), Remedy.PERMANENT),
        (vim.fault.RestrictedVersion(), Remedy.PERMANENT),
        (vmodl.fault.SystemError(), Remedy.PERMANENT),
    ],
)
def test_what_helps_after_a_fault(fault: Any, helps: Remedy) -> None:
    assert remedy(fault) is helps


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (vim.fault.InvalidLogin(msg="Cannot complete login."), PlatformError, "user and password are refused"),
        (vim.fault.NotAuthenticated(), HostUnreachable, "the session does not hold"),
        (vim.fault.RestrictedVersion(msg="Current license prohibits."), PlatformError, "a free ESXi cannot be changed"),
        (vmodl.fault.NotEnoughLicenses(), PlatformError, "a licence is missing"),
        (vmodl.fault.ManagedObjectNotFound(obj=VM), NotFound, "the server has VirtualMachine vm-42 no more"),
        (vim.fault.FileNotFound(file="[ds] x.vmdk"), NotFound, "FileNotFound"),
        (vim.fault.NoDiskSpace(datastore="ds1"), PlatformError, "no space is left on ds1"),
        (vim.fault.InvalidPowerState(), Refused, "InvalidPowerState"),
        (vim.fault.InvalidName(name="a/b"), UsageError, "'a/b'"),
        (vmodl.fault.NotSupported(), PlatformError, "does not offer this"),
        (vmodl.fault.InvalidArgument(invalidProperty="startOffset"), PlatformError, "does not accept startOffset"),
        (vim.fault.TaskInProgress(), PlatformError, "when the other task has ended"),
        (vmodl.fault.HostNotConnected(), HostUnreachable, "HostNotConnected"),
        (vmodl.fault.SystemError(reason="x"), PlatformError, "SystemError"),
        (ConnectionLost("reset", sent=True), HostUnreachable, "reset; whether it was done is not known"),
        (ConnectionLost("refused", sent=False), HostUnreachable, "do it: refused; check the server"),
        (AnswerNotUnderstood("no element"), PlatformError, "is not understood: no element"),
    ],
)
def test_what_a_fault_becomes(fault: Any, kind: type[UnderstudyError], words: str) -> None:
    error = converted("do it", fault)
    assert type(error) is kind
    assert words in str(error)
    assert error.retryable == (kind is HostUnreachable)


def test_a_missing_privilege_is_named_with_its_object() -> None:
    lacking = vim.fault.NoPermission(object=VM, privilegeId="VirtualMachine.State.CreateSnapshot")
    assert "lacks VirtualMachine.State.CreateSnapshot on VirtualMachine vm-42;" in str(converted("do it", lacking))
    assert "on web 1;" in str(converted("do it", lacking, lambda item: "web 1"))


def test_all_missing_privileges_are_named_where_the_server_lists_them() -> None:
    entry = vim.fault.NoPermission.EntityPrivileges(entity=VM, privilegeIds=["A.B", "C.D"])
    lacking = vim.fault.NoPermission(object=VM, privilegeId="A.B", missingPrivileges=[entry])
    assert "lacks A.B on VirtualMachine vm-42, C.D on VirtualMachine vm-42;" in str(converted("do it", lacking))


def test_a_fault_that_names_no_privilege_still_reads_well() -> None:
    assert "lacks a privilege on an object" in str(converted("do it", vim.fault.NoPermission()))


def test_the_servers_words_are_told_in_its_language_once_with_the_cause() -> None:
    inner = vim.fault.FileLocked(msg="Datei gesperrt.")
    outer = vim.fault.GenericVmConfigFault(msg="Fehler.", reason="x", faultCause=inner)
    outer.faultMessage = [vmodl.LocalizableMessage(key="k", message="Fehler."),
                          vmodl.LocalizableMessage(key="m", message="Platte 1 fehlt.")]  # fmt: skip
    assert fault_text(outer) == "GenericVmConfigFault: Fehler: Platte 1 fehlt: because of FileLocked: Datei gesperrt"
