"""Images: what an image file on this host is, as qemu-img tells it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from understudy.errors import PlatformError
from understudy.mover.api import ImageFacts, ProbeImage

TIMEOUT_S = 60


def probe_image(request: ProbeImage) -> ImageFacts:
    """Look at an image that may be in use.

    :raises PlatformError: if qemu-img cannot read it.
    """
    what = f"look at image {request.image}"
    # -U: the VM that runs on the image holds its lock; only the header is read.
    command = ["qemu-img", "info", "-U", "--output=json", "-f", request.image_format, request.image]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PlatformError(what, f"qemu-img: {exc}", "install qemu-utils") from exc
    if done.returncode != 0:
        raise PlatformError(what, " ".join(done.stderr.split()).removeprefix("qemu-img: "))
    try:
        return _facts(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError) as exc:
        raise PlatformError(what, "qemu-img said something unexpected") from exc


def _facts(info: dict[str, Any]) -> ImageFacts:
    if info["format"] != "qcow2":
        return ImageFacts(can_track=False, bitmaps=())
    specific = info["format-specific"]["data"]
    # "in-use": not closed after the last change, so its content is not to be trusted.
    bitmaps = tuple(str(item["name"]) for item in specific.get("bitmaps", ()) if "in-use" not in item["flags"])
    return ImageFacts(can_track=specific["compat"] != "0.10", bitmaps=bitmaps)
