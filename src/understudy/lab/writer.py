"""A guest that never stops writing: a background loop inside a lab guest, on a device or in files."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

BLOCK_SIZE = 64 * 1024

# $1 state prefix, $2 device, $3 pause in microseconds. Of eight rounds six write random data, one writes zeros and one
# trims, each of a 64 KiB block at a random place. Direct writes: the page cache would hold back what a test waits for.
_DEVICE_LOOP = """
blocks=$(($(blockdev --getsize64 "$2") / 65536))
round=0
while [ ! -e "$1.stop" ]; do
    block=$(((RANDOM * 32768 + RANDOM) % blocks))
    case $((round % 8)) in
    6) dd if=/dev/zero of="$2" bs=64k count=1 seek=$block oflag=direct conv=notrunc ;;
    7) blkdiscard -o $((block * 65536)) -l 65536 "$2" ;;
    *) dd if=/dev/urandom of="$2" bs=64k count=1 seek=$block oflag=direct conv=notrunc ;;
    esac || exit 1
    round=$((round + 1))
    echo $round >"$1.rounds.new" && mv "$1.rounds.new" "$1.rounds"
    usleep "$3"
done
sync
"""

# $2 is a directory. A file's checksum appears only after the file is durable and goes before it is touched again, so at
# each instant every checksum that exists is right; that is what verify_files checks on a replica.
_FILES_LOOP = """
mkdir -p "$2" && cd "$2" || exit 1
round=0
while [ ! -e "$1.stop" ]; do
    file=file-$((RANDOM % 16))
    rm -f "$file.md5" && sync || exit 1
    case $((round % 8)) in
    6) dd if=/dev/zero of="$file" bs=64k count=$((RANDOM % 8 + 1)) conv=fsync ;;
    7) rm -f "$file" && fstrim "$2" ;;
    *) dd if=/dev/urandom of="$file" bs=64k count=$((RANDOM % 8 + 1)) conv=fsync ;;
    esac || exit 1
    if [ -e "$file" ]; then md5sum "$file" >"$file.new" && mv "$file.new" "$file.md5" || exit 1; fi
    round=$((round + 1))
    echo $round >"$1.rounds.new" && mv "$1.rounds.new" "$1.rounds"
    usleep "$3"
done
sync
"""


class GuestShell(Protocol):
    """Anything that runs a script in a guest, as LabVm does."""

    def run(self, command: str, timeout_s: float = 60) -> str:
        """Run a shell script in the guest and return its stdout."""


@dataclass(frozen=True)
class GuestWriter:
    """A running writer; as a context manager it is stopped at the end."""

    guest: GuestShell
    state: str

    @classmethod
    def on_device(cls, guest: GuestShell, device: str = "/dev/vdb", pause_ms: int = 20) -> GuestWriter:
        """Start to overwrite a raw block device; all that it holds is lost."""
        return cls._start(guest, _DEVICE_LOOP, device, pause_ms)

    @classmethod
    def in_files(cls, guest: GuestShell, directory: str = "/data/writer", pause_ms: int = 20) -> GuestWriter:
        """Start to rewrite checksummed files in a directory."""
        return cls._start(guest, _FILES_LOOP, directory, pause_ms)

    @classmethod
    def _start(cls, guest: GuestShell, loop: str, target: str, pause_ms: int) -> GuestWriter:
        state = "/run/writer-" + target.strip("/").replace("/", "-")
        arguments = " ".join(shlex.quote(word) for word in (loop, "sh", state, target, str(pause_ms * 1000)))
        # The agent waits for the end of the streams it gave, so the loop must let go of them.
        guest.run(f"rm -f {state}.*; setsid sh -c {arguments} </dev/null >{state}.log 2>&1 & echo $! >{state}.pid")
        return cls(guest, state)

    def __enter__(self) -> GuestWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def rounds(self) -> int:
        """How many writes it has done."""
        return int(self.guest.run(f"cat {self.state}.rounds 2>/dev/null || echo 0"))

    def stop(self) -> int:
        """End the writer after its current write, sync, and return how many writes it did.

        Raises GuestCommandFailed with the writer's own words when it had stopped by an error before.
        """
        self.guest.run(
            f"[ -d /proc/$(cat {self.state}.pid) ] || {{ tail -n 5 {self.state}.log >&2; exit 1; }}\n"
            f"touch {self.state}.stop; while [ -d /proc/$(cat {self.state}.pid) ]; do usleep 20000; done"
        )
        return self.rounds()


def verify_files(guest: GuestShell, directory: str = "/data/writer") -> int:
    """Check every checksummed file in `directory`; how many there were, or GuestCommandFailed at a wrong one."""
    script = f"cd {shlex.quote(directory)} && for sum in *.md5; do md5sum -c -s $sum || exit 1; done; ls *.md5 | wc -l"
    return int(guest.run(script))
