"""Tags of a vCenter, by its REST interface, which a single ESXi host does not have.

Tags are a help for choosing VMs, never a condition: a server without the interface, or a user who may not read it, has
no tags. The session of this interface is another than that of all other calls, and lasts as long as one reading.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any

from understudy.errors import HostUnreachable, PlatformError
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.trust import ServerConnection

_SESSION = "/rest/com/vmware/cis/session"
_TAGS = "/rest/com/vmware/cis/tagging/tag"
_CATEGORIES = "/rest/com/vmware/cis/tagging/category"
_ATTACHED = "/rest/com/vmware/cis/tagging/tag-association?~action=list-attached-objects-on-tags"
_SESSION_HEADER = "vmware-api-session-id"
_OK = 200
# No such interface, not for this user, not running: a vCenter may be without it.
_ABSENT = frozenset({401, 403, 404, 503})


class _NoTags(Exception):
    """The interface is not there for us."""


class _Ask:
    """One call of the interface; what its answer has as value."""

    def __init__(self, server: ServerConnection, headers: Mapping[str, str]) -> None:
        self._server = server
        self._headers = headers

    def __call__(self, verb: str, path: str, body: object = None) -> Any:
        text = None if body is None else json.dumps(body)
        self._server.request(verb, path, text, {"Content-Type": "application/json", **self._headers})
        answer = self._server.getresponse()
        told = answer.read()
        if answer.status in _ABSENT:
            raise _NoTags
        if answer.status != _OK:
            raise PlatformError(f"{verb} {path}", f"the server answers {answer.status}")
        try:
            return json.loads(told)["value"] if told else None
        except (ValueError, KeyError, TypeError) as exc:
            raise PlatformError(f"{verb} {path}", "the server's answer is not understood") from exc


def vm_tags(connection: Connection) -> Mapping[str, Sequence[str]]:
    """The tags of VMs, ``category/tag``, by moref; empty if the server has no interface for tags.

    :raises HostUnreachable: if the server does not answer.
    :raises PlatformError: if it fails.
    """
    if not connection.is_vcenter:
        return {}
    try:
        with _session(connection) as ask:
            return _read(ask)
    except _NoTags:
        return {}
    except (OSError, HTTPException) as exc:
        what = f"tags of {connection.address.name}"
        raise HostUnreachable(what, str(exc), "check the server and the network") from exc


def _read(ask: _Ask) -> Mapping[str, Sequence[str]]:
    categories = {item: ask("GET", f"{_CATEGORIES}/id:{item}")["name"] for item in ask("GET", _CATEGORIES) or ()}
    tags = {item: ask("GET", f"{_TAGS}/id:{item}") for item in ask("GET", _TAGS) or ()}
    names = {item: f"{categories.get(tag['category_id'], '')}/{tag['name']}" for item, tag in tags.items()}
    found: dict[str, list[str]] = {}
    for group in (ask("POST", _ATTACHED, {"tag_ids": list(names)}) or ()) if names else ():
        for attached in group["object_ids"]:
            if attached["type"] == "VirtualMachine":
                found.setdefault(attached["id"], []).append(names[group["tag_id"]])
    return {moref: tuple(sorted(names)) for moref, names in found.items()}


@contextmanager
def _session(connection: Connection) -> Iterator[_Ask]:
    server = connection.another()
    try:
        user, password = connection.credential
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        key = _Ask(server, {"Authorization": f"Basic {pair}"})("POST", _SESSION)
        ask = _Ask(server, {_SESSION_HEADER: str(key), "Accept": "application/json"})
        yield ask
        ask("DELETE", _SESSION)
    finally:
        server.close()
