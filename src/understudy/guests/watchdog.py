"""The thaw watchdog: a process of its own that thaws a guest when we cannot (S9).

``python -m understudy.guests.watchdog URI UUID``, with two words on standard input:

``armed SECONDS``  the guest is about to be frozen and must be thawed after that many seconds at the latest;
``disarm``         the guest is thawed; ends with the answer ``disarmed``, or ``fired`` if the deadline came first.

The end of standard input while armed means that the controller died: the guest is thawed at once. It connects to
libvirt before it answers ``ready``, so that nothing slow stands between a dead controller and the thaw.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

import libvirt

_RETRY_S = 0.5
_GIVE_UP_S = 120.0


def main(uri: str, uuid: str) -> int:
    """Run until disarmed or until the guest was thawed; 0 if there was nothing to do, 3 if it had to thaw."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    domain = _find(uri, uuid)
    _say("ready")
    controller = _Input()
    deadline: float | None = None
    while True:
        words = controller.words(deadline)
        if words is None:
            _thaw(domain, uri, uuid)
            return _fired()
        if words[:1] == ["armed"]:
            deadline = time.monotonic() + float(words[1])
        elif deadline is None or words == ["disarm"]:
            _say("disarmed")
            return 0
        else:  # end of input while armed
            _thaw(domain, uri, uuid)
            return 3


class _Input:
    """The controller's words; several lines may arrive at once, and a line in pieces."""

    def __init__(self) -> None:
        self._read = b""

    def words(self, deadline: float | None) -> list[str] | None:
        """The next line's words, an empty list at the end of input, or None when the deadline passed."""
        while b"\n" not in self._read:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([0], [], [], wait)[0]:
                return None
            more = os.read(0, 256)
            if not more:
                return []
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode("ascii", "replace").split()


def _find(uri: str, uuid: str) -> libvirt.virDomain:
    return libvirt.open(uri).lookupByUUIDString(uuid)


def _thaw(domain: libvirt.virDomain, uri: str, uuid: str) -> None:
    """Thaw until it worked: another agent command of the dead controller may still hold the agent.

    The daemon may have died as well, and our connection with it, so that each further try makes one of its own.
    """
    end = time.monotonic() + _GIVE_UP_S
    while time.monotonic() < end:
        try:
            domain.agentSetResponseTimeout(5, 0)
            domain.fsThaw()
            domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)
        except libvirt.libvirtError as exc:
            if not _running(domain):
                return  # a guest that is off is not frozen
            sys.stderr.write(f"thaw: {exc}\n")
            time.sleep(_RETRY_S)
            with contextlib.suppress(libvirt.libvirtError):  # the daemon is not back yet
                domain = _find(uri, uuid)
        else:
            return


def _running(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError:
        return True


def _fired() -> int:
    """Tell the controller, if it is still there, that the deadline came first."""
    with contextlib.suppress(BrokenPipeError):
        _say("fired")
    return 3


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
