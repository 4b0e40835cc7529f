"""Disks served through a vendor's disk library: real nbdkit and its real plugin, with a stand-in for the library."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nbd
import pytest

from tests.vsphere.library.kit import LIBRARY, PASSWORD, THUMBPRINT, StandIn
from tests.vsphere.library.lab import DATA, OTHER_PATH, OTHER_VM, PATH, SECTOR, SIZE, SNAPSHOT, VM, disk, wish
from understudy.errors import HostUnreachable, NotFound, PlatformError, TransferError, UnderstudyError, UsageError
from understudy.model.access import DiskLibrary
from understudy.model.exclusion import pack
from understudy.model.extent import Extent
from understudy.model.snapshot import LibraryDisk, LibraryExport
from understudy.mover import api
from understudy.mover.exports import Exports
from understudy.mover.library_probe import probe_library
from understudy.mover.protocol import encode
from understudy.mover.reader import Source
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import KIB, MIB


@pytest.fixture
def exports(tmp_path: Path) -> Iterator[Exports]:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    opened = Exports(run_dir)
    try:
        yield opened
    finally:
        opened.close_all()
    assert [path.name for path in run_dir.iterdir()] == []


def read_all(source: Source) -> bytes:
    content = bytearray(SIZE)
    for start in range(0, SIZE, MIB):
        source.planner.read(memoryview(content)[start : start + MIB], start)
    return bytes(content)


def test_a_disk_of_a_snapshot_is_read_whole_and_identical(
    library: StandIn, exports: Exports, tmp_path: Path
) -> None:  # fmt: skip
    key, where = exports.open_library(wish(library))
    source = Source(where, SIZE)
    try:
        assert read_all(source) == (tmp_path / "frozen.raw").read_bytes()
    finally:
        source.close()
    exports.close(key)
    counts = library.counts()
    assert counts["Open"] == counts["Close"] == counts["Disconnect"] == 2  # one to see whether it can be opened
    for call in library.calls("ConnectEx"):
        assert call.values == {"server": "127.0.0.1", "port": "0", "user": library.login.user, "password": "right",
                               "thumbprint": THUMBPRINT, "vm": f"moref={VM}", "read_only": "1", "snapshot": SNAPSHOT,
                               "transports": "nbdssl"}  # fmt: skip


# --- what is allocated, and what changed ------------------------------------------------------------------------------


def data_of(source: Source) -> list[tuple[int, int]]:
    """Where block status says that there is data, in windows as the plan asks."""
    found: list[tuple[int, int]] = []
    position = 0
    while position < SIZE:
        known, statuses = source.statuses(position, min(4 * MIB, SIZE - position), min(MIB, SIZE - position))
        for item in statuses[ALLOCATION]:
            if not item.flags & ZERO_FLAG:
                found.append((item.start, item.end))
        position += known
    return found


def test_what_is_not_allocated_is_told_as_zero_and_everything_else_is_data(library: StandIn, exports: Exports) -> None:
    _, where = exports.open_library(wish(library))
    source = Source(where, SIZE)
    told = data_of(source)
    source.close()
    for start, length in DATA:
        assert any(begin <= start and start + length <= end for begin, end in told)
    # In units of 64 KiB: three places, and at the end what is less than a unit.
    assert sum(end - begin for begin, end in told) <= (1 + 5 + 2) * 64 * KIB


def test_changed_areas_are_told_by_the_mover_and_cost_the_library_nothing(library: StandIn, exports: Exports) -> None:
    areas = (Extent(5 * SECTOR, SECTOR), Extent(2 * MIB, MIB), Extent(SIZE - SECTOR, SECTOR))
    key, where = exports.open_library(wish(library, changed=pack(areas)))
    assert where.dirty_context == f"understudy:changed:{key}"
    source = Source(where, SIZE, tracked=True)
    library.forget()
    known, statuses = source.statuses(0, SIZE, SIZE)
    assert library.counts()["Query"] == 0
    assert known == SIZE
    told = statuses[where.dirty_context]
    assert tuple(Extent(item.start, item.length) for item in told if item.flags & DIRTY_FLAG) == areas
    assert sum(item.length for item in told) == SIZE
    run = Extent(2 * MIB, 3 * MIB)
    assert sum(item.length for item in source.allocation(run)) == run.length
    assert library.counts()["Query"] > 0
    source.close()


def test_nothing_changed_is_not_everything_changed(library: StandIn, exports: Exports) -> None:
    _, where = exports.open_library(wish(library, changed=""))
    source = Source(where, SIZE, tracked=True)
    assert source.statuses(0, SIZE, SIZE)[1][where.dirty_context] == [Extent(0, SIZE, 0)]
    source.close()
    _, untracked = exports.open_library(wish(library))
    assert untracked.dirty_context == ""


def test_changed_areas_that_cannot_be_understood_are_refused(library: StandIn, exports: Exports) -> None:
    with pytest.raises(UsageError, match="changed areas"):
        exports.open_library(wish(library, changed="no list"))


# --- writing ----------------------------------------------------------------------------------------------------------


def test_parts_are_written_in_place_and_nothing_else_is_touched(
    library: StandIn, exports: Exports, tmp_path: Path
) -> None:
    live = tmp_path / "live.raw"
    before = live.read_bytes()
    allocated = live.stat().st_blocks
    _, where = exports.open_library(replace(wish(library, snapshot=""), writable=True))
    places = ((MIB, 8 * KIB), (6 * MIB + SECTOR, SECTOR), (SIZE - SECTOR, SECTOR))
    expected = bytearray(before)
    handle = nbd.NBD()
    handle.set_export_name(where.export)
    handle.connect_unix(where.socket)
    for number, (offset, length) in enumerate(places):
        block = random.Random(number).randbytes(length)
        expected[offset : offset + length] = block
        handle.pwrite(block, offset)
    handle.flush()
    handle.shutdown()
    assert live.read_bytes() == bytes(expected)
    # The first two places were holes; a file system gives whole blocks.
    assert live.stat().st_blocks - allocated <= (8 * KIB + 4 * KIB + 4 * KIB) // SECTOR
    assert [(call.number("start") * SECTOR, call.number("count") * SECTOR) for call in library.calls("Write")] == [
        *places]  # fmt: skip


@pytest.mark.parametrize(
    ("faults", "words"), [({"full_after": 3 * MIB}, "datastore is full"), ({"fail_write": 2}, "ended the connection")]
)
def test_a_write_that_fails_is_an_error_with_its_reason(
    library: StandIn, exports: Exports, faults: dict[str, int], words: str
) -> None:
    _, where = exports.open_library(replace(wish(library, snapshot=""), writable=True))
    library.fail(**faults)
    handle = nbd.NBD()
    handle.set_export_name(where.export)
    handle.connect_unix(where.socket)
    handle.pwrite(bytes(2 * MIB), 0)
    with pytest.raises(TransferError, match=words), exports.explaining(where):  # noqa: PT012 - two borders
        try:
            handle.pwrite(bytes(2 * MIB), 2 * MIB)
        except nbd.Error as exc:
            raise TransferError(f"write {where.socket}", exc.string) from exc
    handle.shutdown()


def test_a_request_that_is_not_aligned_is_an_error_and_never_other_bytes(library: StandIn, exports: Exports) -> None:
    """The plugin refuses it. All our reads begin and end at borders of 64 KiB, or with the disk."""
    _, where = exports.open_library(wish(library))
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_export_name(where.export)
    handle.connect_unix(where.socket)
    for length, offset in ((SECTOR, 1), (100, 0), (SECTOR + 1, SECTOR)):
        with pytest.raises(nbd.Error):
            handle.pread(length, offset)
    assert library.calls("Read") == []
    handle.shutdown()


def test_an_export_that_is_to_be_read_cannot_be_written(library: StandIn, exports: Exports) -> None:
    _, where = exports.open_library(wish(library))
    handle = nbd.NBD()
    handle.set_export_name(where.export)
    handle.connect_unix(where.socket)
    assert handle.is_read_only()
    handle.set_strict_mode(0)
    with pytest.raises(nbd.Error):
        handle.pwrite(bytes(SECTOR), 0)
    handle.shutdown()
    assert library.calls("Write") == []


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(exports: Exports, request: api.OpenLibraryExport) -> UnderstudyError:
    with pytest.raises(UnderstudyError) as caught:
        exports.open_library(request)
    assert PASSWORD not in f"{caught.value!r}{caught.value}"
    assert exports.tags() == ()
    return caught.value


def test_a_wrong_password_is_named_and_never_repeated(library: StandIn, exports: Exports) -> None:
    wanted = wish(library)
    login = replace(library.login, password="falsch-4711")
    error = refused(exports, replace(wanted, export=replace(wanted.export, login=login)))
    assert type(error) is PlatformError
    assert "user or the password" in str(error)
    assert "error 3014" in str(error)
    assert "check the host's credential" in error.todo
    assert "falsch-4711" not in f"{error!r}{error}"
    assert library.calls("ConnectEx")[-1].values["password"] == "wrong"
    assert library.calls("Open") == []


def test_another_certificate_is_named_although_the_library_only_says_that_it_cannot_connect(
    library: StandIn, exports: Exports
) -> None:
    wanted = wish(library)
    login = replace(library.login, thumbprint=THUMBPRINT.replace("30", "31"))
    error = refused(exports, replace(wanted, export=replace(wanted.export, login=login)))
    assert type(error) is PlatformError
    assert "certificate is not the one that was confirmed" in str(error)


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        (LibraryDisk("d", VM, SNAPSHOT, "[ds 1] web/gone.vmdk", 1), NotFound, "no such disk file"),
        (LibraryDisk("d", "vm-99", SNAPSHOT, PATH, 1), NotFound, "no such VM"),
        (LibraryDisk("d", OTHER_VM, SNAPSHOT, PATH, 1), PlatformError, "no access to the disk's file"),
        (LibraryDisk("d", VM, "snapshot-8", PATH, 1), PlatformError, "no access to the disk's file"),
        # A VM that runs holds its live disk.
        (LibraryDisk("d", OTHER_VM, "", OTHER_PATH, 1), PlatformError, "running VM has the disk open"),
    ],
)
def test_a_disk_that_is_not_this_vms_is_refused(
    library: StandIn, exports: Exports, wanted: LibraryDisk, kind: type[UnderstudyError], words: str
) -> None:
    error = refused(exports, api.OpenLibraryExport(LibraryExport(library.login, wanted), "t"))
    assert type(error) is kind
    assert words in str(error)


def test_a_disk_of_a_running_vm_is_not_opened_for_writing(library: StandIn, exports: Exports) -> None:
    wanted = replace(disk(""), vm=OTHER_VM, file=OTHER_PATH)
    error = refused(exports, api.OpenLibraryExport(LibraryExport(library.login, wanted), "t", writable=True))
    assert type(error) is PlatformError
    assert "no access" in str(error)


def test_a_snapshot_is_never_opened_for_writing(library: StandIn, exports: Exports) -> None:
    error = refused(exports, replace(wish(library), writable=True))
    assert type(error) is UsageError
    assert library.calls() == []


@pytest.mark.parametrize("faults", [{"connect": 14009}, {"open": 14008}])
def test_a_server_that_does_not_answer_may_be_tried_again(
    library: StandIn, exports: Exports, faults: dict[str, int]
) -> None:
    library.fail(**faults)
    error = refused(exports, wish(library))
    assert type(error) is HostUnreachable
    assert "does not answer or ended the connection" in str(error)
    assert "902" in error.todo
    library.fail()
    exports.open_library(wish(library))


def test_a_host_without_a_session_left_is_no_host_that_is_down(library: StandIn, exports: Exports) -> None:
    library.fail(sessions=1)
    _, where = exports.open_library(wish(library))
    source = Source(where, SIZE)  # the connection that looked whether the disk can be opened has ended
    error = refused_while_open(exports, wish(library))
    assert type(error) is HostUnreachable
    assert "no memory or sessions left" in str(error)
    assert "fewer disks at the same time" in error.todo
    source.close()


def refused_while_open(exports: Exports, request: api.OpenLibraryExport) -> UnderstudyError:
    with pytest.raises(UnderstudyError) as caught:
        exports.open_library(request)
    return caught.value


@pytest.mark.parametrize(
    ("library_of", "words"),
    [
        (lambda kit: DiskLibrary("/nowhere/kit", kit.plugin), "disk library cannot be loaded"),
        (lambda kit: DiskLibrary("", kit.plugin), "not known where the disk library is"),
        (lambda kit: DiskLibrary(kit.directory, "/nowhere/plugin.so"), "plugin for the disk library is missing"),
        (lambda kit: DiskLibrary(kit.directory, "no-such"), "plugin for the disk library is missing"),
    ],
)
def test_what_is_not_installed_is_named(
    library: StandIn, exports: Exports, library_of: Callable[[DiskLibrary], DiskLibrary], words: str
) -> None:
    wanted = wish(library)
    login = replace(library.login, library=library_of(library.library))
    error = refused(exports, replace(wanted, export=replace(wanted.export, login=login)))
    assert type(error) is PlatformError
    assert words in str(error)


# --- the probe --------------------------------------------------------------------------------------------------------


def test_the_probe_tells_the_versions(library: StandIn) -> None:
    facts = probe_library(api.ProbeLibrary(library.library))
    assert facts.problem == ""
    assert facts.library_version == "8"
    assert facts.plugin_version
    assert facts.server_version.startswith("1.")


def test_the_probe_names_a_library_that_the_plugin_does_not_load(library: StandIn, tmp_path: Path) -> None:
    newer = tmp_path / "newer" / "lib64"
    newer.mkdir(parents=True)
    (newer / "libvixDiskLib.so.99").symlink_to(library.kit / LIBRARY)
    facts = probe_library(api.ProbeLibrary(DiskLibrary(str(newer.parent), library.library.plugin)))
    assert facts.library_version == ""
    assert "does not load the library of major version 99" in facts.problem
    assert facts.plugin_version in facts.problem


@pytest.mark.parametrize(
    ("library_of", "words"),
    [
        (lambda kit, empty: DiskLibrary(empty, kit.plugin), "no disk library in"),
        (lambda kit, empty: DiskLibrary("", kit.plugin), "no directory of the disk library is set"),
        (lambda kit, empty: DiskLibrary(kit.directory, "no-such"), "plugin for the disk library is missing"),
        (lambda kit, empty: DiskLibrary(f"{empty}/nowhere", kit.plugin), "there is no disk library in"),
    ],
)
def test_the_probe_names_what_is_missing(
    library: StandIn, tmp_path: Path, library_of: Callable[[DiskLibrary, str], DiskLibrary], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    facts = probe_library(api.ProbeLibrary(library_of(library.library, str(tmp_path / "empty"))))
    assert words in facts.problem
    assert facts.library_version == ""


def test_the_probe_names_a_library_that_lacks_a_function(library: StandIn, tmp_path: Path) -> None:
    place = tmp_path / "broken" / "lib64"
    place.mkdir(parents=True)
    source = tmp_path / "broken.c"
    source.write_text("int VixDiskLib_InitEx(void) { return 1; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(place / "libvixDiskLib.so.8"), str(source)], check=True)
    facts = probe_library(api.ProbeLibrary(DiskLibrary(str(place.parent), library.library.plugin)))
    assert "disk library cannot be loaded" in facts.problem
    assert "VixDiskLib_" in facts.problem


# --- the process ------------------------------------------------------------------------------------------------------


def test_nbdkit_ends_with_whoever_started_it_however_that_ends(library: StandIn, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    program = (
        "import sys; from pathlib import Path\n"
        "from understudy.mover.api import OpenLibraryExport\n"
        "from understudy.mover.exports import Exports\n"
        "from understudy.mover.protocol import decode\n"
        "exports = Exports(Path(sys.argv[1]))\n"
        "exports.open_library(decode(OpenLibraryExport, sys.stdin.buffer.readline()))\n"
        "print(next(iter(exports._children.values())).process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(run_dir)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as parent:  # fmt: skip
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(encode(wish(library)) + b"\n")
        parent.stdin.flush()
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while alive(child):
        assert time.monotonic() < deadline, "nbdkit outlived its parent"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_password_is_in_no_command_line_environment_or_file(
    library: StandIn, exports: Exports, tmp_path: Path
) -> None:
    _, where = exports.open_library(wish(library))
    source = Source(where, SIZE)
    (child,) = exports._children.values()
    secret = PASSWORD.encode()
    # nbdkit is started again by its plugin, with other words: those of the first start are gone by now.
    assert PASSWORD not in " ".join(child.server.command)
    assert child.process.args == ["setpriv", "--pdeathsig", "KILL", *child.server.command]
    for process in (child.process.pid, os.getpid()):
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{process}/{name}").read_bytes()
    assert os.getpgid(child.process.pid) == child.process.pid
    source.close()
    exports.close_tagged("understudy-")
    library.facts.unlink()  # the server's own
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path
