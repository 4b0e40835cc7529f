"""What faults of guest operations mean, and which certificate a transfer is pinned to."""

from __future__ import annotations

import hashlib
from ssl import DER_cert_to_PEM_cert
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from understudy.errors import GuestError, HostUnreachable, NotFound
from understudy.platforms.vsphere.faults import ConnectionLost, converted
from understudy.platforms.vsphere.guest_files import certificate_pin
from understudy.platforms.vsphere.guest_operations import guest_error

WHAT = "start /bin/sh in the guest of VM 'web'"


def told(fault: BaseException) -> GuestError:
    """As the connection converts it, and then the guest operations."""
    error = converted(WHAT, fault)
    error.__cause__ = fault
    return guest_error(WHAT, error)


@pytest.mark.parametrize(("fault", "why", "todo"), [
    (vim.fault.InvalidGuestLogin(), "the guest refuses user and password", "understudy credential add"),
    (vim.fault.GuestPermissionDenied(), "does not permit this to the user", "all rights"),
    (vim.fault.GuestMultipleMappings(), "several users", "a password"),
    (vim.fault.TooManyGuestLogons(), "too many users are logged on", "later"),
    (vim.fault.OperationDisabledByGuest(), "switched off in the guest's VMware Tools", "tools.conf"),
    (vim.fault.OperationNotSupportedByGuest(), "cannot do this", "update"),
    (vim.fault.GuestComponentsOutOfDate(), "too old", "update"),
    (vim.fault.GuestProcessNotFound(pid=7), "does not know the process any more", ""),
    (vim.fault.GuestOperationsUnavailable(), "do not answer, or are not ready", "see that they run"),
    (vim.fault.ToolsUnavailable(), "VMware Tools do not run in the guest", "start them"),
    (vim.fault.InvalidPowerState(), "the VM does not run", ""),
    (vim.fault.FileNotFound(file="x"), "no such file", ""),
    (vim.fault.FileAlreadyExists(file="x"), "such a file already", ""),
    (vim.fault.NoDiskSpace(file="x", datastore=""), "no room", "make room"),
    (vim.fault.CannotAccessFile(file="x"), "does not let the user at the file", "all rights"),
], ids=lambda item: "" if isinstance(item, str) else type(item).__name__.rpartition(".")[2])  # fmt: skip
def test_a_fault_is_told_in_plain_words_with_its_own_name(fault: Any, why: str, todo: str) -> None:
    error = told(fault)
    assert error.what == WHAT
    assert why in error.why
    assert type(fault).__name__.rpartition(".")[2] in error.why
    assert todo in error.todo
    assert bool(todo) == bool(error.todo)


def test_what_is_no_fault_of_the_guest_is_told_as_everywhere() -> None:
    unknown = told(vim.fault.GuestRegistryFault(windowsSystemErrorCode=5, msg="odd"))
    assert "GuestRegistryFault: odd" in unknown.why
    assert "VirtualMachine.GuestOperations.Execute" in told(
        vim.fault.NoPermission(object=vim.VirtualMachine("vm-1"), privilegeId="VirtualMachine.GuestOperations.Execute")
    ).why  # fmt: skip
    assert "whether it was done is not known" in told(ConnectionLost("it broke", sent=True)).why
    assert "no more" in told(vmodl.fault.ManagedObjectNotFound(obj=vim.VirtualMachine("vm-1"))).why
    for error in (NotFound("a", "b"), HostUnreachable("a", "b")):
        assert isinstance(guest_error(WHAT, error), GuestError)
    kept = GuestError("a", "b")
    assert guest_error(WHAT, kept) is kept


def test_the_pin_is_that_of_the_certificate_in_whatever_form_it_is_told() -> None:
    der = b"\x30\x82\x01\x00" + bytes(range(256))
    pin = hashlib.sha256(der).digest().hex(":").upper()
    assert certificate_pin(der) == pin
    assert certificate_pin(number - 256 if number > 127 else number for number in der) == pin
    assert certificate_pin(b"\n" + DER_cert_to_PEM_cert(der).encode() + b"\n") == pin


@pytest.mark.parametrize("nothing", [b"", b"\n", b"no certificate", b"\xff\xff"])
def test_what_is_no_certificate_is_no_pin(nothing: bytes) -> None:
    assert certificate_pin(nothing) == ""
