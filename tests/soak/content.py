"""Which bytes does a guest have now, and which does a restore point show? As checksums of each MiB."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt

from tests.soak.tally import Truth
from understudy.lab.vm import LabVm
from understudy.units import MIB

_ZEROS = bytes(MIB)


def image_chunks(image: Path, image_format: str, work: Path) -> list[bytes]:
    """Checksums of what an image and those below it show; read by QEMU's own tool, into a file that goes again."""
    raw = work / "read.raw"
    subprocess.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", str(image), str(raw)], check=True,
                   timeout=300)
    try:
        with raw.open("rb") as file:
            return [_checksum(chunk) for chunk in iter(lambda: file.read(MIB), b"")]
    finally:
        raw.unlink()


def _checksum(chunk: bytes) -> bytes:
    # Most of a small guest's disk is zero.
    return b"" if chunk == _ZEROS[: len(chunk)] else hashlib.sha256(chunk).digest()


def vm_truth(vm: LabVm, work: Path) -> Truth:
    """What the disks of a VM hold that is paused or off, wherever a snapshot has put its writes."""
    found = {}
    with vm.domain() as domain:
        definition = ET.fromstring(domain.XMLDesc(0))
    for disk in definition.iterfind("devices/disk"):
        source, target, driver = disk.find("source"), disk.find("target"), disk.find("driver")
        assert source is not None
        assert target is not None
        assert driver is not None
        image = Path(source.get("file", ""))
        found[target.get("dev", "")] = image_chunks(image, driver.get("type", ""), work)
    return found


@contextmanager
def standing_still(vm: LabVm) -> Iterator[None]:
    """Inside the context a running VM is paused; the libvirtd of its host may be restarted meanwhile."""
    if vm.is_running():
        with vm.domain() as domain:
            domain.suspend()
    try:
        yield
    finally:
        with vm.domain() as domain:
            if domain.isActive() and domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
