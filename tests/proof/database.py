"""A PostgreSQL bank in the Debian guest: a load that leaves traces, and what a booted point says of its database.

Each transaction moves money between two accounts and books the transfer under the next number; the writer tells a
number, in memory, when its commit was acknowledged. So whatever instant a database shows, all numbers up to its highest
are there, the sum of all balances is what it always was, and no acknowledged number is missing.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from understudy.lab.commands import find_program
from understudy.lab.debian import BOOT_SIZE, BOOT_START, MEMORY_MIB
from understudy.lab.debian_tree import CLUSTER
from understudy.lab.vm import LabVm

ACCOUNTS = 10_000
BALANCE = 1000
#: Where the writer tells which numbers were acknowledged, and scripts of the job what was the last one when.
ACKNOWLEDGED = "/run/acknowledged"
MARKS = "/run/marks"
MARK = f"""#!/bin/sh
echo "@WHEN@ $(tail -n 1 {ACKNOWLEDGED}) $(date +%s)" >>{MARKS}
"""

_BIN = "/usr/lib/postgresql/15/bin"
_PROOF = "/root/proof"
_PSQL = "psql -XAtq -v ON_ERROR_STOP=1"
_TABLES = f"""
CREATE EXTENSION amcheck;
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, owner text);
CREATE TABLE transfer (number int PRIMARY KEY, source int NOT NULL, target int NOT NULL, amount int NOT NULL);
CREATE INDEX ON account (owner);
INSERT INTO account SELECT id, {BALANCE}, md5(id::text) FROM generate_series(0, {ACCOUNTS - 1}) AS id;
CHECKPOINT;
"""
# The client asks for a number only after its commit, and writes out each answer at once.
_WRITER = f"""n=0
while :; do
    n=$((n + 1)); source=$((n * 7919 % {ACCOUNTS})); target=$(((source + n) % {ACCOUNTS}))
    echo "BEGIN;
        UPDATE account SET balance = balance - $((n % 50)) WHERE id = $source;
        UPDATE account SET balance = balance + $((n % 50)) WHERE id = $target;
        INSERT INTO transfer VALUES ($n, $source, $target, $((n % 50)));
        COMMIT;
        SELECT $n FROM pg_sleep(0.1);"
done | {_PSQL} >{ACKNOWLEDGED}
"""
# As the first process of a guest, in place of systemd: the database alone, as the power cut left it.
_CHECK = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:{_BIN}
say() {{ echo "proof $*" >/dev/ttyS0; }}
as() {{ setpriv --reuid postgres --regid postgres --init-groups env -C / "$@"; }}
mount -t tmpfs tmpfs /run; mkdir /dev/shm; mount -t tmpfs tmpfs /dev/shm
mkdir /run/postgresql; chown postgres: /run/postgresql
as pg_controldata {CLUSTER} >/run/control
say state "$(sed -n 's/^Database cluster state: *//p' /run/control)"
say checkpoint "$(sed -n 's/^Latest checkpoint location: *//p' /run/control)"
say redo "$(sed -n "s/^Latest checkpoint's REDO location: *//p" /run/control)"
as pg_ctl -D {CLUSTER} -s -w -t 120 -o '-c config_file=/etc/postgresql/15/main/postgresql.conf' start >/run/log 2>&1 ||
    say failed "$(tail -n 3 /run/log)"
say recovered "$(sed -n 's/.*redo done at \\([0-9A-F/]*\\) .*/\\1/p' /run/log)"
say bank $(as {_PSQL} -F ' ' -c 'SELECT (SELECT sum(balance) FROM account), max(number), count(*) FROM transfer')
as pg_amcheck --heapallindexed -d postgres >/run/amcheck 2>&1; say amcheck $? "$(tail -n 3 /run/amcheck | tr '\\n' ' ')"
say end
exec systemctl -ff poweroff
"""


def start_bank(vm: LabVm) -> None:
    """Make the tables, put the check of a booted point onto the disk, and start the writer; it has begun at return."""
    vm.write_file("/run/tables.sql", _TABLES.encode())
    vm.run(f"chmod 644 /run/tables.sql; runuser -u postgres -- {_PSQL} -f /run/tables.sql")
    vm.write_file(_PROOF, _CHECK.encode())
    vm.write_file("/run/writer", _WRITER.encode())
    vm.run(f"chmod 700 {_PROOF}; install -o postgres -m 644 /dev/null {ACKNOWLEDGED}; "
           "setsid runuser -u postgres -- sh /run/writer </dev/null >/dev/null 2>&1 &"
           f"until [ -s {ACKNOWLEDGED} ]; do sleep 0.1; done")  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """What the database of a booted point says.

    :ivar state: of the cluster as it was found.
    :ivar checkpoint: position of the last checkpoint in it; `redo` is where its recovery began, `recovered` where it
        ended.
    :ivar numbers: how many transfers are there; `highest` is the highest number of one.
    :ivar amcheck: the status of pg_amcheck and its last words.
    """

    state: str
    checkpoint: str
    redo: str
    recovered: str
    total: int
    highest: int
    numbers: int
    amcheck: str


def prove(image: str, work_dir: Path, timeout_s: float = 200) -> Proof:
    """Boot a restore point, writing to a layer of its own, with its own kernel, and let its database be checked."""
    work_dir.mkdir()
    disk, console = work_dir / "disk.qcow2", work_dir / "console.log"
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", str(disk))
    boot = work_dir / "boot.ext4"
    part = f"driver=raw,offset={BOOT_START},size={BOOT_SIZE},file.driver=qcow2,file.file.filename={disk}"
    _run("qemu-img", "convert", "--image-opts", part, "-O", "raw", str(boot))
    for name in ("vmlinuz", "initramfs"):
        _run("debugfs", "-R", f"dump /boot/{name} {work_dir / name}", str(boot))
    options = f"console=ttyS0 quiet panic=-1 mitigations=off norandmaps random.trust_cpu=on init={_PROOF}"
    _run("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", str(MEMORY_MIB), "-nodefaults", "-no-reboot",
         "-display", "none", "-serial", f"file:{console}", "-drive", f"file={disk},if=virtio,format=qcow2",
         "-kernel", str(work_dir / "vmlinuz"), "-initrd", str(work_dir / "initramfs"), "-append", options,
         timeout_s=timeout_s)  # fmt: skip
    return _read(console.read_text(errors="replace"))


def _read(console: str) -> Proof:
    said = {found[1]: found[2].strip() for found in re.finditer(r"^proof (\S+) ?(.*?)\r?$", console, re.MULTILINE)}
    assert "end" in said, console[-2000:]
    assert "failed" not in said, said
    total, highest, numbers = map(int, said["bank"].split())
    return Proof(said["state"], said["checkpoint"], said["redo"], said["recovered"], total, highest, numbers,
                 said["amcheck"])  # fmt: skip


def _run(program: str, *arguments: str, timeout_s: float = 60) -> None:
    done = subprocess.run([find_program(program), *arguments], capture_output=True, text=True, timeout=timeout_s,
                          check=False)  # fmt: skip
    assert done.returncode == 0, (program, done.stderr)


def position(text: str) -> int:
    """A position in the write-ahead log as a number: `A/B` in hexadecimal."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)
