"""How is a JSON document kept so that damage shows?

It has a field ``checksum``: SHA-256 over the document without it, as JSON with sorted keys and no spaces. That is no
seal against forgery.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from understudy.errors import ReplicaError
from understudy.storage.records.fields import Malformed, parse_object


def sealed(document: dict[str, Any]) -> bytes:
    """``document`` with its checksum, as text."""
    return json.dumps(document | {"checksum": checksum(document)}, indent=1).encode() + b"\n"


def unsealed(what: str, data: bytes, kind: str, newest: int) -> dict[str, Any]:
    """The document in ``data``, without its checksum.

    :param what: the act and its object, for errors.
    :param kind: what its field ``understudy`` must say.
    :param newest: the highest format that this program knows.
    :raises Malformed: if it is damaged, or of another kind.
    :raises ReplicaError: if it is of a newer format.
    """
    document = parse_object(data)
    version = document.get("format")
    if document.get("understudy") != kind or type(version) is not int or version < 1:
        raise Malformed(f"it is no record of a {kind}")
    if version > newest:
        raise ReplicaError(what, f"the record has format {version}, this program knows formats up to {newest}",
                           "use a newer Understudy on this host")
    try:
        expected = checksum({name: value for name, value in document.items() if name != "checksum"})
    except RecursionError as exc:
        raise Malformed("nested too deep") from exc
    if document.pop("checksum", None) != expected:
        raise Malformed("the checksum does not match")
    return document


def checksum(document: dict[str, Any]) -> str:
    """The checksum of a document that has none yet."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
