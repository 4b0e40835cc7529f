"""A survey's process that has been taken over by what a guest wrote, as far as its rights let it.

It is the real one with another reader of partition tables, which does what the first mask of the request names. That
reader is called when every right is given up.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Never

from understudy.mover import survey_child
from understudy.mover.api import SurveyDisks
from understudy.mover.protocol import decode
from understudy.units import MIB
from understudy.volumes import Image, Unfit

CPU_S = 1
_PR_GET_NO_NEW_PRIVS = 39


def eat_memory(_: Image) -> Never:
    """In the reader: only its volume is refused."""
    kept = []
    while True:
        kept.append(bytes(16 * MIB))


def spin(_: Image) -> Never:
    while True:
        pass


def linger(_: Image) -> Never:
    while True:
        signal.pause()


def crash(_: Image) -> Never:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def end_oddly(_: Image) -> Never:
    os.kill(os.getpid(), signal.SIGRTMIN + 3)
    raise AssertionError


def exit_silently(_: Image) -> Never:
    os._exit(3)


def hold_on(_: Image) -> Never:
    """Nothing more is said, and nothing ends."""
    for number in range(3):
        os.close(number)
    while True:
        signal.pause()


def talk(_: Image) -> Never:
    while True:
        os.write(1, bytes(MIB))


def complain(_: Image) -> Never:
    for _line in range(200):
        os.write(2, b"\x1b[2J complaint\n" * 1000)
    os.write(2, b"the last word\n\n")
    os._exit(1)


def stammer(_: Image) -> Never:
    os.write(1, b'{"surveys": [')
    os._exit(0)


def lie(_: Image) -> Never:
    """Of a disk of which everything was left out that is said to be there."""
    os.write(1, b'{"surveys": [{"exclusion": {"disk": "vda", "packed": "", "by_kind": {"swap": 1}}}]}')
    os._exit(0)


def tell_rights(_: Image) -> Never:
    raise Unfit(json.dumps(_rights()))


ACTS: dict[str, Callable[[Image], Never]] = {
    act.__name__: act for act in (eat_memory, spin, linger, crash, end_oddly, exit_silently, hold_on, talk,
                                  complain, stammer, lie, tell_rights)
}  # fmt: skip


def _rights() -> dict[str, object]:
    """In few characters, as notes are cut."""
    forbidden: dict[str, Callable[[], object]] = {
        "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "socket": socket.socket, "unix": lambda: socket.socket(socket.AF_UNIX), "pipe": os.pipe, "fork": os.fork,
        "user": lambda: os.setuid(0), "group": lambda: os.setgroups([0]), "kill": lambda: os.kill(os.getppid(), 0),
    }  # fmt: skip
    return {
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "descriptors": [number for number in range(3, 256) if _is_open(number)],
        "environment": sorted(os.environ),
        "can_read_shadow": os.access("/etc/shadow", os.R_OK),
        "refused": {name: _error(act) for name, act in forbidden.items()},
        "no_new_privileges": _no_new_privileges(),
    }


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _error(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return ""


def _no_new_privileges() -> bool:
    return bool(ctypes.CDLL(None).prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


def main() -> int:
    content = sys.stdin.buffer.read()
    act = decode(SurveyDisks, content).masks[0].strip("/")
    sys.stdin = io.TextIOWrapper(io.BytesIO(content))
    if act == "eat_memory_between_readers":
        vars(survey_child)["survey"] = lambda disks, *_: eat_memory(disks[0].image)
        return survey_child.main([])
    survey_child.READERS = replace(survey_child.READERS, partitions=ACTS[act])
    if act == "spin":
        survey_child.CPU_S = CPU_S
    return survey_child.main([])


if __name__ == "__main__":
    sys.exit(main())
