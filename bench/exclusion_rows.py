"""The row of what is left out: the bytes that a job saves on the wire, against what its VM's swap and folders hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bench.result import Goal, Row, Unit
from bench.settings import Settings
from bench.tools import BenchError, interleaved, run
from bench.twins import drop_checkpoints
from understudy.lab.disks import DataDisk
from understudy.lab.lab import Lab
from understudy.lab.site_pair import SitePair
from understudy.lab.vm import LabVm
from understudy.units import KIB, MIB

SAVED = "left-out-wire"
NAMES = (SAVED,)
#: Of what the data disks hold: swap, and folders that a mask names.
SWAP_SHARE, FOLDER_SHARE = 0.25, 0.25
FOLDER = "build cache"
_PAGE = 4 * KIB
_KEEPING = ("--swap", "keep")
_LEAVING_OUT = ("--exclude", f"/{FOLDER}/**")


@dataclass(frozen=True)
class _Guest:
    """A running VM, and the bytes in its swap and in its folders that can be left out."""

    vm: LabVm
    swap: int
    folders: int


def exclusion_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """First runs of two jobs of one VM, between two proxies: one keeps everything."""
    if not settings.wants(*NAMES):
        return
    with Lab.open(linked=True) as lab:
        guest = _running_guest(lab, place, settings.vm_data)
        pair = _sites(lab, place)
        try:
            for name, options in (("keeping", _KEEPING), ("leaving-out", _LEAVING_OUT)):
                pair.run("job", "create", name, "--source", "alpha", "--target", "beta", "--datastore", "ds", "--vm",
                         guest.vm.name, "--suffix", f"-{name}", "--compression", "none", *options)  # fmt: skip
            kept, rest = interleaved(settings.runs, [lambda: _wire(pair, guest.vm, "keeping"),
                                                     lambda: _wire(pair, guest.vm, "leaving-out")])  # fmt: skip
        finally:
            pair.close()
    held = guest.swap + guest.folders
    details = {"kept_wire_mib": [sent / MIB for sent in kept], "left_out_wire_mib": [sent / MIB for sent in rest],
               "swap_mib": [guest.swap / MIB], "folders_mib": [guest.folders / MIB]}  # fmt: skip
    title = "bytes saved on the wire / bytes that swap and excluded folders hold, 25 % and 25 % of the guest's data"
    values = tuple((more - less) / held for more, less in zip(kept, rest, strict=True))
    yield Row(SAVED, title, Unit.RATIO, values, Goal(1, within=0.02), details)


def _running_guest(lab: Lab, place: Path, data: int) -> _Guest:
    """A VM with a disk for files and one for swap, both full of bytes that cannot be compressed."""
    images = place / "images"
    images.mkdir()
    (lab.alpha.directory / "images").symlink_to(images)
    dice = Random(7)
    swap = int(data * SWAP_SHARE) // MIB * MIB
    disks = [DataDisk(data), DataDisk(swap)]
    vm = LabVm.create(lab.alpha, "web", lab.guest, data_disks=disks)
    paths = {disk.target: disk.path for disk in vm.disks}
    folders = _fill_files(paths["vdb"], data, dice)
    _fill_swap(paths["vdc"], swap, dice)
    vm.start()
    vm.wait_agent()
    vm.run("swapon /dev/vdc")
    return _Guest(vm, swap - _PAGE, folders)


def _fill_files(image: Path, size: int, dice: Random) -> int:
    """Make a volume with files; the bytes of those that a mask names."""
    tree, raw = image.with_suffix(".tree"), image.with_suffix(".raw")
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/fstab").write_text("/dev/vdb / ext4 defaults 0 1\n")
    folders = _write_files(tree / FOLDER, int(size * FOLDER_SHARE), dice)
    _write_files(tree / "srv", int(size * (1 - SWAP_SHARE - FOLDER_SHARE)), dice)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", tree, raw, str(size // KIB) + "k")
    run("rm", "-r", tree)
    _convert(raw, image)
    return folders


def _write_files(directory: Path, most: int, dice: Random) -> int:
    """Write files of all lengths up to 4 MiB; their bytes."""
    number, written = 0, 0
    while written < most:
        path = directory / f"{number // 50}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        written += path.write_bytes(dice.randbytes(min(dice.randint(1, 4 * MIB), most - written)))
        number += 1
    return written


def _fill_swap(image: Path, size: int, dice: Random) -> None:
    """Make a swap area that is full of what was swapped out."""
    raw = image.with_suffix(".raw")
    with raw.open("wb") as file:
        for _ in range(size // MIB):
            file.write(dice.randbytes(MIB))
    run("mkswap", raw)
    _convert(raw, image)


def _convert(raw: Path, image: Path) -> None:
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    raw.unlink()


def _sites(lab: Lab, place: Path) -> SitePair:
    """A controller and a proxy on each host, and a datastore."""
    store, sites = place / "store", place / "sites"
    for directory in (store, sites):
        directory.mkdir()
    pair = SitePair(lab, sites)
    for host in lab.hosts:
        pair.run("host", "add", host.name, host.uri, "--scratch-dir", str(place / f"scratch-{host.name}"))
    pair.run("datastore", "add", "ds", "--host", "beta", "--path", str(store))
    for name, host in (("near", lab.alpha), ("far", lab.beta)):
        pair.enrol(name, host)
    return pair


def _wire(pair: SitePair, vm: LabVm, job: str) -> int:
    """The bytes that the first run of a job puts on the wire; its replica is removed again."""
    drop_checkpoints(vm)
    session = pair.json("job", "run", job)
    disks: list[dict[str, Any]] = session["tasks"][0]["disks"]
    if session["state"] != "success" or {disk["mode"] for disk in disks} != {"full"}:
        raise BenchError(f"job {job} ended with {session}")
    pair.run("replica", "remove", f"{vm.name}-{job}", "--delete-files")
    return sum(int(disk["wire_bytes"]) for disk in disks)


GROUPS = (exclusion_rows,)
