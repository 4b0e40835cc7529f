"""Conversion: virt-v2v gives the guest on a head drivers for virtio devices. Layers are only read, which is proved."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import IO
from xml.etree import ElementTree as ET

from understudy.context import Context
from understudy.errors import Cancelled, DatastoreError, MoverError, Refused, ReplicaError, UnderstudyError
from understudy.faults import fault_point
from understudy.model.replica import Conversion, FileMark
from understudy.mover import api
from understudy.mover.meter import Meter
from understudy.mover.state import Mover
from understudy.mover.work import CONVERTING
from understudy.platforms.foreign import disk_names, source_of
from understudy.storage import ReplicaStore
from understudy.storage.values import HeadFacts

LOG = logging.getLogger(__name__)
PROGRAM = "virt-v2v-in-place"
_POLL_S = 0.2
_END_TIMEOUT_S = 10.0
_TOLD = 600


def probe_conversion(_mover: Mover, _request: api.ProbeConversion) -> api.ConversionFacts:
    """Where the program is on this host."""
    return api.ConversionFacts(shutil.which(PROGRAM) or "")


def start_conversion(mover: Mover, request: api.ConvertHead) -> api.WorkStarted:
    """Convert the head, in the background."""

    def convert(ctx: Context, _meter: Meter) -> None:
        with mover.drafts.owned(request.owner) as store:
            _convert(ctx, mover.run_dir, store, request)

    return api.WorkStarted(mover.works.start(f"convert {request.owner.ref.name}", convert, CONVERTING))


def _convert(ctx: Context, run_dir: Path, store: ReplicaStore, request: api.ConvertHead) -> None:
    what = f"convert the head of replica {request.owner.ref.name!r}"
    head = store.head()
    if not head.point:
        raise Refused(what, "it has no head", "start its failover")
    if not head.empty or head.conversion is not Conversion.NONE:
        raise Refused(what, "it was written to already", "run 'understudy failover undo' first")
    definition = store.definition(head.point)
    if source_of(definition) is None:
        raise Refused(what, "its VM is of this same platform", "start the failover without a conversion")
    xml, before = conversion_xml(what, definition, head.files), _layer_marks(store, head)
    # Before the first byte is written: whoever finds this after a crash knows that the guest is half converted.
    store.set_conversion(Conversion.UNFINISHED)
    fault_point("convert.recorded")
    _run(ctx, run_dir, what, xml, request.timeout_s)
    fault_point("convert.ran")
    if _layer_marks(store, head) != before:
        raise ReplicaError(what, "layers of restore points were written to meanwhile",
                           "run 'understudy replica verify' on all of its points")
    store.set_conversion(Conversion.VIRTIO)


def conversion_xml(what: str, definition: str, heads: Mapping[str, str]) -> str:
    """The domain that virt-v2v looks into: firmware and disks of ``definition``, with all ``heads`` in it.

    :raises ReplicaError: if a head is of no disk of the definition.
    """
    known = ET.fromstring(definition)
    names = disk_names(known)
    root = ET.Element("domain", type="kvm")
    for tag in ("name", "memory", "vcpu", "os"):
        root.extend(deepcopy(element) for element in known.findall(tag))
    for os_element in root.findall("os"):
        for nvram in os_element.findall("nvram"):
            os_element.remove(nvram)
    devices, left = ET.SubElement(root, "devices"), dict(heads)
    for target in known.iterfind("devices/disk/target"):
        device = target.get("dev", "")
        head = left.pop(names.get(device, device), "")
        if head:
            disk = ET.SubElement(devices, "disk", type="file", device="disk")
            ET.SubElement(disk, "driver", name="qemu", type="qcow2")
            ET.SubElement(disk, "source", file=head)
            ET.SubElement(disk, "target", dev=device, bus=target.get("bus", ""))
    if left:
        raise ReplicaError(what, f"the VM's definition has no disk {', '.join(sorted(left))}",
                           "use another restore point")
    return ET.tostring(root, encoding="unicode")


def _layer_marks(store: ReplicaStore, head: HeadFacts) -> dict[Path, FileMark]:
    """What tells whether a layer was written to: of all files where the layers below the head lie."""
    try:
        files = [path for directory in {store.image(head.point, disk).parent for disk in head.files}
                 for path in directory.iterdir()]
        return {path: FileMark(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                for path in files for found in (path.stat(),)}
    except OSError as exc:
        raise DatastoreError(f"look at the layers below {head.point}", exc.strerror or str(exc)) from exc


def _run(ctx: Context, run_dir: Path, what: str, xml: str, timeout_s: float) -> None:
    with tempfile.TemporaryDirectory(prefix="convert-", dir=run_dir) as directory, \
            (Path(directory) / "log").open("w+b") as log:
        domain = Path(directory) / "domain.xml"
        domain.write_text(xml, encoding="utf-8")
        try:
            with _running(what, domain, log) as process:
                _wait(ctx, what, process, timeout_s)
        finally:
            said = _said(log)
            LOG.info("%s: %s said: %s", what, PROGRAM, said)
        if process.returncode != 0:
            raise MoverError(what, f"{PROGRAM} failed: {_reason(said)}", "see the proxy's log, or start the failover "
                             "with '--convert never'")


@contextmanager
def _running(what: str, domain: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The program; when the block ends, nothing of it runs any more, nor of what it started."""
    # It starts a qemu-nbd and an appliance, which would outlive it with the head open. In a PID namespace nothing does,
    # and that dies with this process: the thread that starts it waits for its end, so that the death signal comes then.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--mount-proc", "--fork", "--kill-child=KILL",
               PROGRAM, "-i", "libvirtxml", str(domain)]
    # As a user's libvirt service would run it, the appliance could not open the head.
    environment = {"LIBGUESTFS_BACKEND": "direct", **os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                   start_new_session=True)
    except OSError as exc:
        raise MoverError(what, f"cannot start {PROGRAM}: {exc}", "install virt-v2v and util-linux") from exc
    try:
        yield process
    finally:
        _end(what, process)


def _wait(ctx: Context, what: str, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        try:
            ctx.check()
        except Cancelled as exc:
            raise Cancelled(what) from exc
        if time.monotonic() > deadline:
            raise MoverError(what, f"{PROGRAM} did not end within {timeout_s:.0f} s",
                             "see what slows the target host down, or start the failover with '--convert never'")
        time.sleep(_POLL_S)


def _end(what: str, process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group, and wait until no process of it has the head open."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while True:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        process.poll()
        if time.monotonic() > deadline:
            raise UnderstudyError(what, f"processes of {PROGRAM} (group {process.pid}) do not end", "end them by hand")
        time.sleep(_POLL_S)
    process.wait()


def _said(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")


def _reason(said: str) -> str:
    """The error in what the program said: without the advice on how to report it, or else the last that it said."""
    _, error, rest = said.partition("error: ")
    text = rest.split("If reporting bugs", 1)[0] if error else said[-_TOLD:]
    return " ".join(text.split())[:_TOLD] or "it ended without a word"
