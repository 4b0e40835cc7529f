"""Talk to the QEMU guest agent in any domain: lab guests and replicas that the product started alike."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import libvirt
import libvirt_qemu

from understudy.lab.errors import GuestCommandFailed, HypervisorFailed, LabTimeout
from understudy.lab.libvirt_calls import libvirt_calls

# One answer of the agent; commands are started and polled, so even long ones answer at once.
_ANSWER_TIMEOUT_S = 20
# libvirt 9.0 never finishes sending a request of 512 KiB of data in base64; 256 KiB take 0.1 s.
_FILE_CHUNK = 128 << 10


def wait_agent(connection: libvirt.virConnect, domain: str, timeout_s: float = 60) -> None:
    """Return as soon as the guest agent answers; LabTimeout with its last refusal when it does not in time."""
    with libvirt_calls(f"wait for the guest agent of {domain}"):
        connection.lookupByName(domain)
    deadline = time.monotonic() + timeout_s
    while (refusal := _ping_refusal(connection, domain)) is not None:
        if time.monotonic() >= deadline:
            raise LabTimeout(domain, f"no guest agent within {timeout_s:g} s: {refusal.why}") from refusal
        time.sleep(0.1)


def _ping_refusal(connection: libvirt.virConnect, domain: str) -> HypervisorFailed | None:
    try:
        call_agent(connection, domain, "guest-ping")
    except HypervisorFailed as exc:
        return exc
    return None


def run_in_guest(
    connection: libvirt.virConnect, domain: str, command: str | Sequence[str], timeout_s: float = 60
) -> str:
    """Run a shell script (str) or a program (sequence) in a guest and return its stdout.

    Raises GuestCommandFailed with its stderr when it ends with another status than 0, and LabTimeout, without ending
    the command, when it takes longer than timeout_s.
    """
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    request = {"path": argv[0], "arg": argv[1:], "capture-output": True}
    pid = call_agent(connection, domain, "guest-exec", request)["pid"]
    shown = command if isinstance(command, str) else " ".join(command)
    ended = _await_exit(lambda: call_agent(connection, domain, "guest-exec-status", {"pid": pid}), timeout_s)
    if ended is None:
        raise LabTimeout(f"{domain}: {shown!r}", f"did not end within {timeout_s:g} s")
    stdout, stderr = (base64.b64decode(ended.get(key, "")).decode(errors="replace") for key in ("out-data", "err-data"))
    # A command ended by a signal has a signal number in place of an exit status.
    status = ended.get("exitcode", -ended.get("signal", 0))
    if status != 0:
        why = f"status {status}: {stderr.strip() or stdout.strip() or 'no output'}"
        raise GuestCommandFailed(f"{domain}: {shown!r}", why, status=status, stdout=stdout, stderr=stderr)
    return stdout


def _await_exit(poll: Callable[[], dict[str, Any]], timeout_s: float) -> dict[str, Any] | None:
    deadline = time.monotonic() + timeout_s
    pause_s = 0.01
    while not (status := poll())["exited"]:
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.25)
    return status


def write_guest_file(connection: libvirt.virConnect, domain: str, path: str, content: bytes) -> None:
    """Write a file in a guest, replacing what was there; flushed to the guest's kernel, not synced to its disk."""
    handle = call_agent(connection, domain, "guest-file-open", {"path": path, "mode": "w"})
    try:
        for start in range(0, len(content), _FILE_CHUNK):
            data = base64.b64encode(content[start : start + _FILE_CHUNK]).decode("ascii")
            call_agent(connection, domain, "guest-file-write", {"handle": handle, "buf-b64": data})
    finally:
        call_agent(connection, domain, "guest-file-close", {"handle": handle})


def read_guest_file(connection: libvirt.virConnect, domain: str, path: str) -> bytes:
    """Return the content of a file in a guest."""
    handle = call_agent(connection, domain, "guest-file-open", {"path": path, "mode": "r"})
    content = bytearray()
    try:
        while True:
            part = call_agent(connection, domain, "guest-file-read", {"handle": handle, "count": _FILE_CHUNK})
            content += base64.b64decode(part["buf-b64"])
            if part["eof"]:
                return bytes(content)
    finally:
        call_agent(connection, domain, "guest-file-close", {"handle": handle})


def call_agent(
    connection: libvirt.virConnect, domain: str, command: str, arguments: dict[str, Any] | None = None
) -> Any:
    """Send one command to the guest agent and return what it answers; HypervisorFailed when it refuses."""
    request: dict[str, Any] = {"execute": command}
    if arguments is not None:
        request["arguments"] = arguments
    with libvirt_calls(f"{domain}: guest agent: {command}"):
        answer = libvirt_qemu.qemuAgentCommand(
            connection.lookupByName(domain), json.dumps(request), _ANSWER_TIMEOUT_S, 0
        )
    return json.loads(answer)["return"]
