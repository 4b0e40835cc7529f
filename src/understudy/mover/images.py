"""Images: what an image file on this host is, as qemu-img tells it."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from understudy.errors import PlatformError
from understudy.mover.api import ImageFacts, ProbeImage

LOG = logging.getLogger(__name__)
TIMEOUT_S = 60


def probe_image(request: ProbeImage) -> ImageFacts:
    """Look at an image that may be in use.

    :raises PlatformError: if qemu-img cannot read it.
    """
    what = f"look at image {request.image}"
    try:
        return _facts(_info(what, request.image, request.image_format))
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
    command = ["qemu-img", "info", "-U", "--output=json", *options, "-f", image_format, image]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PlatformError(what, f"qemu-img: {exc}", "install qemu-utils") from exc
    if done.returncode != 0:
        raise PlatformError(what, " ".join(done.stderr.split()).removeprefix("qemu-img: "))
    try:
        return json.loads(done.stdout)
    except ValueError as exc:
        raise PlatformError(what, "qemu-img said something unexpected") from exc


def _facts(info: dict[str, Any]) -> ImageFacts:
    if info["format"] != "qcow2":
        return ImageFacts(can_track=False, bitmaps=())
    specific = info["format-specific"]["data"]
    # "in-use": not closed after the last change, so its content is not to be trusted.
    bitmaps = tuple(str(item["name"]) for item in specific.get("bitmaps", ()) if "in-use" not in item["flags"])
    return ImageFacts(can_track=specific["compat"] != "0.10", bitmaps=bitmaps)
