"""When a process has ended."""

from __future__ import annotations

import subprocess
import sys

from understudy.lab.processes import ProcessIdentity

# The first thread ends by itself, which leaves a zombie whose other thread still has every file open.
_LEADER_ENDS_FIRST = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("here", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_has_not_ended_before_its_last_thread() -> None:
    command = [sys.executable, "-c", _LEADER_ENDS_FIRST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        process.stdout.readline()
        while identity.alive():
            pass
        assert not identity.wait_end(0.2)
        process.stdin.close()
        assert identity.wait_end(10)
