"""What a host may look like: one that is reached by libvirt, or one of VMware vSphere. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from understudy.controller.naming import check_address, check_path, check_uri, has_control_characters
from understudy.errors import UsageError
from understudy.model.access import NO_LIBRARY
from understudy.model.job import Host

MAX_SNAPSHOTS = 1000
_SHA256_DIGITS = 64
_SHA1_DIGITS = 40
_PLUGIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VSPHERE_FORM = "give e.g. vpx://vcenter.example/, or esx://esxi1.example/ for a single ESXi host"


def checked_host(what: str, host: Host) -> Host:
    """``host`` in normal form.

    :raises UsageError: if a field is not acceptable, or means nothing for a host of its kind; a URI with a password is
        never acceptable.
    """
    check_uri(what, host.uri)
    if not 1 <= host.max_snapshots <= MAX_SNAPSHOTS:
        raise UsageError(what, f"{host.max_snapshots} is no number of snapshots", f"choose 1 to {MAX_SNAPSHOTS}")
    if host.by_library:
        return _checked_vsphere(what, host)
    check_path(what, host.scratch_dir)
    if host.nbd_address:
        check_address(what, host.nbd_address)
    if host.credential or host.thumbprint or host.library != NO_LIBRARY:
        raise UsageError(what, "a credential, a thumbprint and a disk library mean nothing for a libvirt host",
                         "leave them out; keys and certificates are found by the URI")
    return host


def uri_user(uri: str) -> str:
    """The user in a host's URI; empty if it names none."""
    return unquote(urlsplit(uri).username or "")


def check_login(what: str, host: Host, user: str, *, by_password: bool) -> None:
    """Accept a credential of ``user`` for a host of vSphere.

    :raises UsageError: if it is not one of kind password, or the URI names another user.
    """
    if not by_password:
        raise UsageError(what, f"credential {host.credential!r} is a key, and VMware vSphere wants a password",
                         _how_to_store(host.uri))
    named = uri_user(host.uri)
    if named and named.casefold() != user.casefold():
        raise UsageError(what, f"the URI names user {named!r}, and credential {host.credential!r} is of user {user!r}",
                         "leave the user out of the URI, or name another credential")


def normal_thumbprint(what: str, text: str) -> str:
    """A SHA-256 fingerprint in capitals with colons; empty as it is.

    :raises UsageError: if it is something else.
    """
    digits = re.sub(r"[:\s-]", "", text)
    if not text:
        return ""
    if not re.fullmatch(rf"[0-9A-Fa-f]{{{_SHA256_DIGITS}}}", digits):
        sha1 = re.fullmatch(rf"[0-9A-Fa-f]{{{_SHA1_DIGITS}}}", digits)
        why = "this is a SHA-1 fingerprint, which can be forged" if sha1 else "this is no SHA-256 fingerprint"
        raise UsageError(what, why, "give 64 hexadecimal digits, with or without colons")
    return ":".join(re.findall("..", digits.upper()))


def _checked_vsphere(what: str, host: Host) -> Host:
    parts = urlsplit(host.uri)
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(what, "this is not the address of a vCenter or an ESXi host", _VSPHERE_FORM)
    check_address(what, parts.hostname)
    if host.scratch_dir or host.nbd_address:
        raise UsageError(what, "a scratch directory and an NBD address mean nothing for a host of VMware vSphere",
                         "leave them out: its disks are read through the vendor's disk library")
    if not host.credential:
        raise UsageError(what, "a host of VMware vSphere needs a credential", _how_to_store(host.uri))
    if host.library.directory:
        check_path(what, host.library.directory)
    _check_plugin(what, host.library.plugin)
    return replace(host, thumbprint=normal_thumbprint(what, host.thumbprint))


def _check_plugin(what: str, plugin: str) -> None:
    if plugin.startswith("/"):
        check_path(what, plugin)
    elif not _PLUGIN_NAME.fullmatch(plugin) or has_control_characters(plugin):
        raise UsageError(what, f"{plugin!r} is no plugin of nbdkit", "give its name, or the full path of its file")


def _how_to_store(uri: str) -> str:
    user = uri_user(uri) or "USER"
    return f"store one: understudy credential add CRED --user {user!r}, then name it: --credential CRED"
