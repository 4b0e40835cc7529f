"""What holds at this moment in the simulated vCenter, for the double of the disk library: one file, `facts.json`.

The front (`front.py`) writes it, anew and atomically (a new file is renamed over the old one), before the answer that
tells a client of the change goes out. The disk library reads it at every connection and at every open, never later.

    {"user": "administrator@vsphere.local",     who may connect, and nobody else
     "password": "...",
     "thumbprint": "AB:CD:...",                 SHA-1 of the front's certificate: 20 pairs of capital hex digits
     "disks": [
       {"vm": "vm-52",                          moref: the only VM that may name this path
        "path": "[LocalDS_0] web/disk1.vmdk",   as the VM's or the snapshot's configuration spells it
        "file": "/tmp/.../disk1-flat.vmdk",     the bytes, on this machine; its length is the capacity
        "snapshot": "",                         moref of a snapshot, or empty for the VM's live disk
        "writable": true}]}

How to read one entry:

- A disk is found by all of (vm, path, snapshot). What is not listed does not exist for that VM: a path of another VM
  is an access error if any entry has that path, else a file that is not found.
- `snapshot` names a snapshot: the bytes are those of its instant and never change. `writable` is false.
- `snapshot` is empty and `writable` is true: the VM is off, its current leaf may be read and written in place.
- `snapshot` is empty and `writable` is false: a running or suspended VM holds the lock of its leaf. Not even reading
  opens it, as ESXi would answer.
- After a snapshot the live path is another (`web/disk1-000001.vmdk`) while the snapshot keeps the one before, so who
  opens a live disk by a name that he read before the snapshot finds nothing. A parent in a chain has no entry with an
  empty `snapshot`: nobody writes below a snapshot.

While the disk library has a disk open it holds flock(2) on `file`, shared to read and exclusive to write. The front
takes the exclusive one before it changes the file, so a VM whose disk is open does not start, and a snapshot that is
being read is not merged away: it leaves a delta, as on ESXi.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_NAME = "facts.json"


@dataclass(frozen=True)
class DiskFact:
    """One disk that the disk library may be asked for."""

    vm: str
    path: str
    file: str
    snapshot: str
    writable: bool


@dataclass(frozen=True)
class Facts:
    """All that the disk library has to know."""

    user: str
    password: str
    thumbprint: str
    disks: tuple[DiskFact, ...]


def write_facts(directory: Path, facts: Facts) -> None:
    """Replace the facts file in `directory` at once: a reader sees the old facts or the new ones, whole."""
    new = directory / f".{FILE_NAME}.new"
    new.write_text(json.dumps(asdict(facts), indent=1), encoding="utf-8")
    new.replace(directory / FILE_NAME)


def read_facts(directory: Path) -> Facts:
    """The facts in `directory`, as the disk library sees them."""
    found = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
    disks = tuple(DiskFact(**disk) for disk in found.pop("disks"))
    return Facts(disks=disks, **found)
