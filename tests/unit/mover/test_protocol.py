"""The values that travel between controller and mover."""

from __future__ import annotations

import json

import pytest

from understudy.errors import UsageError
from understudy.model.access import DiskLibrary, LibraryLogin
from understudy.model.snapshot import LibraryDisk, LibraryExport
from understudy.mover.api import OpenLibraryExport
from understudy.mover.protocol import decode, decode_plain, encode

DISK = LibraryDisk("disk-0", "vm-1", "snapshot-2", "[ds] a/a.vmdk", 2000)
LOGIN = LibraryLogin("vc", "user", "geheim-4711", "AA:BB", DiskLibrary("/opt/kit"))
REQUEST = OpenLibraryExport(LibraryExport(LOGIN, DISK, ""), "tag")


def test_a_value_comes_back_as_it_was() -> None:
    assert decode(OpenLibraryExport, encode(REQUEST)) == REQUEST


def test_a_value_does_not_show_a_password() -> None:
    assert "geheim" not in repr(REQUEST)


@pytest.mark.parametrize(("name", "value"), [("thumbprint", None), ("server", 7), ("password", ["geheim-4711"])])
def test_a_value_of_another_version_is_refused_and_its_secrets_are_not_repeated(name: str, value: object) -> None:
    plain = json.loads(encode(REQUEST))
    if value is None:
        del plain["export"]["login"][name]
    else:
        plain["export"]["login"][name] = value
    with pytest.raises(UsageError) as one:
        decode(OpenLibraryExport, json.dumps(plain).encode())
    with pytest.raises(UsageError) as two:
        decode_plain(OpenLibraryExport, plain)
    for error in (one.value, two.value):
        shown = f"{error}{error!r}{error.__cause__!r}"
        assert f"export.login.{name}: " in shown
        assert "geheim" not in shown
