"""What nbdkit and a disk library say, in words for the operator."""

from __future__ import annotations

import pytest

from understudy.errors import HostUnreachable, NotFound, PlatformError, UnderstudyError
from understudy.mover.library_errors import reason_in, refusal

CONNECTED = "nbdkit: debug: accepted connection"


def log(text: str) -> str:
    """A line of the library's log."""
    return f"nbdkit: vddk[1]: debug: {text}"


def error(text: str) -> str:
    """An error of nbdkit, or a warning of the library."""
    return f"nbdkit: vddk[1]: error: {text}"


def said(*lines: str) -> str:
    """As nbdkit writes it when it is verbose."""
    return "\n".join(["nbdkit: debug: nbdkit 1.32.5", CONNECTED, log("VDDK call: VixDiskLib_ConnectEx ()"), *lines])


@pytest.mark.parametrize(
    ("lines", "kind", "words"),
    [
        (
            (
                log("VixDiskLib_OpenEx: Cannot open a. Error 13 (You do not have access rights to this file) at 5."),
                error("VixDiskLib_Open: a: You do not have access rights to this file"),
            ),
            PlatformError,
            "no access to the disk's file",
        ),
        ((log("VixDiskLib_OpenEx: Cannot open. Error 13 (Kein Zugriff) at 5."), error("VixDiskLib_Open: a: ?")),
         PlatformError, "no access to the disk's file"),
        ((error("VixDiskLib_Open: [ds] a/a.vmdk: A file was not found"),), NotFound, "no such disk file"),
        ((error("VixDiskLib_ConnectEx: Insufficient permissions in the host operating system"),),
         PlatformError, "user or the password"),
        ((log("VixDiskLibVim: Login failure: Incorrect user name or password."), error("VixDiskLib_ConnectEx: Incorrect"
          " user name or password")), PlatformError, "user or the password"),
        # The cause is in the log alone; the error says that the host cannot be reached.
        (
            (
                log("VixDiskLibVim: Failed to verify SSL certificate: actual thumbprint=AA expected=BB"),
                error("VixDiskLib_ConnectEx: Cannot connect to host"),
            ),
            PlatformError,
            "not the one that was confirmed",
        ),
        (
            (
                error("[NFC ERROR]NfcNewAuthdConnectionEx: Failed to connect: Failed to connect to server esx:902"),
                error("VixDiskLib_Open: [ds] a/a.vmdk: The server refused connection"),
            ),
            HostUnreachable,
            "does not answer",
        ),
        (
            (
                error("[NFC ERROR] NfcFssrvrProcessErrorMsg: received NFC error 5 from server: Failed to allocate the"
                      " requested 2097176 bytes"),
                error("command 7: asynchronous VixDiskLib_ReadAsync failed: Memory allocation failed. Out of memory"),
            ),
            HostUnreachable,
            "no memory or sessions left",
        ),
        ((error("command 7: asynchronous VixDiskLib_WriteAsync failed: The file system is full"),),
         PlatformError, "its datastore is full"),
        (("nbdkit: error: libvixDiskLib.so.6: cannot open shared object file: No such file or directory",),
         PlatformError, "disk library cannot be loaded"),
        (("nbdkit: error: cannot open plugin 'vddk': /plugins/nbdkit-vddk-plugin.so: cannot open shared object file",),
         PlatformError, "plugin for the disk library is missing"),
    ],
)  # fmt: skip
def test_a_reason_has_its_error_and_says_what_to_do(
    lines: tuple[str, ...], kind: type[UnderstudyError], words: str
) -> None:
    found = refusal("open disk 'a'", said(*lines))
    assert type(found) is kind
    assert words in str(found)
    assert found.todo


def test_what_nobody_has_foreseen_is_told_in_the_librarys_words() -> None:
    found = refusal("open disk 'a'", said(error("VixDiskLib_Open: [ds] a.vmdk: Something rare")))
    assert type(found) is PlatformError
    assert str(found).count("Something rare") == 1


def test_the_last_error_number_counts() -> None:
    reason = reason_in(said(log("Cannot open disk a. Error 4 (eins) at 1."), log("Cannot open. Error 13 (zwei) at 1.")))
    assert reason is not None
    assert reason.kind is PlatformError
    assert reason.said.endswith("error 13")


def test_what_was_said_before_a_client_connected_again_is_no_reason() -> None:
    recovered = said(error("[NFC ERROR] NfcNetTcpRead: connection lost"), CONNECTED, log("VDDK call: ()"))
    assert reason_in(recovered) is None
    assert reason_in(f"{recovered}\n{error('VixDiskLib_Open: a: A file was not found')}") is not None


def test_clients_that_go_away_are_no_reason() -> None:
    assert reason_in(said(error("reading initial client flags: conn->recv: Connection reset by peer"))) is None
    assert reason_in(said()) is None
    assert "without a word" in str(refusal("open disk 'a'", said()))
