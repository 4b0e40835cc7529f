"""Images: what an image file on this host is, as qemu-img tells it, and what of ours is removed from it."""

from __future__ import annotations

import json
import logging
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from understudy.errors import PlatformError, UsageError
from understudy.model.replica import FileMark
from understudy.mover.api import ImageFacts, Nothing, ProbeImage, RemoveBitmap

LOG = logging.getLogger(__name__)
TIMEOUT_S = 60
_NUMBERS = (1 << 63) - 1


def probe_image(request: ProbeImage) -> ImageFacts:
    """Look at an image that may be in use.

    :raises PlatformError: if qemu-img cannot read it.
    """
    what = f"look at image {request.image}"
    # Before its content: what is written in between makes the file look younger next time, which is harmless.
    mark = _file_mark(what, Path(request.image))
    try:
        return _facts(_info(what, request.image, request.image_format), mark)
    except (KeyError, TypeError) as exc:
        raise PlatformError(what, "qemu-img said something unexpected") from exc


def files_below(images: Iterable[tuple[str, str]]) -> set[Path] | None:
    """The images, ``(file, format)``, and all files below them; None if one cannot be read, so that nobody can tell.

    An image that does not exist needs none.
    """
    found: set[Path] = set()
    for image, image_format in images:
        found.add(Path(image))
        if image_format != "qcow2" or not Path(image).exists():
            continue
        try:
            chain = _info(f"look below image {image}", image, image_format, "--backing-chain")
            found |= {Path(str(part["filename"])) for part in chain}
        except (PlatformError, KeyError, TypeError) as exc:
            LOG.warning("what lies below image %s cannot be told: %s", image, exc)
            return None
    return found


def _info(what: str, image: str, image_format: str, *options: str) -> Any:
    # -U: the VM that runs on the image holds its lock; only the header is read.
    said = _qemu_img(what, "info", "-U", "--output=json", *options, "-f", image_format, image)
    try:
        return json.loads(said)
    except ValueError as exc:
        raise PlatformError(what, "qemu-img said something unexpected") from exc


def remove_bitmap(request: RemoveBitmap) -> Nothing:
    """Remove a bitmap of ours from an image that nobody has open.

    :raises UsageError: if the name is not one that begins with the tag.
    :raises PlatformError: if somebody has the image open, or qemu-img cannot change it.
    """
    what = f"remove bitmap {request.name} from image {request.image}"
    if not request.tag or not request.name.startswith(request.tag):
        raise UsageError(what, "its name does not carry our tag")
    facts = probe_image(ProbeImage(request.image, "qcow2"))
    if request.name in (*facts.bitmaps, *facts.open_bitmaps):
        _qemu_img(what, "bitmap", "--remove", "-f", "qcow2", request.image, request.name)
    return Nothing()


def _file_mark(what: str, path: Path) -> FileMark | None:
    try:
        found = path.stat()
    except OSError as exc:
        raise PlatformError(what, exc.strerror or str(exc)) from exc
    if not stat.S_ISREG(found.st_mode):
        return None
    # Records hold signed numbers of 64 bits; inodes of some file systems are larger.
    return FileMark(found.st_ino & _NUMBERS, found.st_size, found.st_mtime_ns & _NUMBERS, found.st_ctime_ns & _NUMBERS)


def _qemu_img(what: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["qemu-img", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PlatformError(what, f"qemu-img: {exc}", "install qemu-utils") from exc
    if done.returncode != 0:
        raise PlatformError(what, " ".join(done.stderr.split()).removeprefix("qemu-img: "))
    return done.stdout


def _facts(info: dict[str, Any], mark: FileMark | None) -> ImageFacts:
    if info["format"] != "qcow2":
        return ImageFacts(can_track=False, bitmaps=(), file=mark)
    specific = info["format-specific"]["data"]
    flags = {str(item["name"]): item["flags"] for item in specific.get("bitmaps", ())}
    # "in-use": not closed after the last change, so its content is not to be trusted.
    closed = tuple(name for name in flags if "in-use" not in flags[name])
    in_use = tuple(name for name in flags if "in-use" in flags[name])
    return ImageFacts(specific["compat"] != "0.10", closed, in_use, mark)
