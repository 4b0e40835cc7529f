"""Which datastore is this directory? A marker file tells, so that an empty mount point is not taken for one."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from understudy.errors import DatastoreError
from understudy.storage.files import replace_durable

NAME = ".understudy-datastore"


def read_marker(datastore: Path) -> str:
    """The id in the marker file of a datastore directory; empty if there is no marker file.

    :raises DatastoreError: if it cannot be read, or is damaged.
    """
    path = datastore / NAME
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as exc:
        raise DatastoreError(f"datastore {datastore}", f"its marker file {NAME} cannot be read: {exc}") from exc
    try:
        return str(uuid.UUID(json.loads(text)["id"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise DatastoreError(f"datastore {datastore}", f"its marker file {NAME} is damaged",
                             "delete this file, then use 'understudy datastore set NAME --accept'") from exc


def make_marker(datastore: Path) -> str:
    """Give a datastore directory a marker file, durably and in one step; one that it has stays. The id in it.

    :raises DatastoreError: if it cannot be written, or the one that it has is damaged.
    """
    found = read_marker(datastore)
    if found:
        return found
    temporary = datastore / f"{NAME}.{uuid.uuid4().hex}"
    document = {"understudy": "datastore", "id": str(uuid.uuid4())}
    try:
        try:
            replace_durable(datastore / NAME, temporary, json.dumps(document).encode() + b"\n", 0o644)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise DatastoreError(f"mark datastore {datastore}", os.strerror(exc.errno or 0),
                             "check its permissions and its free space") from exc
    return read_marker(datastore)
