"""Credentials are stored encrypted, and belong to the home that stored them."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest
from sqlalchemy import text

from understudy.controller import catalog, jobs
from understudy.controller.credentials import (
    Credential,
    CredentialKind,
    accept_host_key,
    add_credential,
    get_credential,
    host_access,
    host_key,
    list_credentials,
    remove_credential,
)
from understudy.controller.database import Database
from understudy.controller.schema import HostRow
from understudy.errors import DatabaseError, NotFound, Refused, UsageError
from understudy.model.access import DiskLibrary, HostAccess
from understudy.model.guest import GuestSettings
from understudy.model.job import Host

LOGIN = Credential("linux", "admin", CredentialKind.PASSWORD, "correct horse")


def test_a_secret_comes_back_and_lies_nowhere_in_clear(site: Database) -> None:
    add_credential(site, LOGIN)
    assert get_credential(site, "linux") == LOGIN
    assert list_credentials(site) == (("linux", "admin", CredentialKind.PASSWORD),)
    with site.reading() as session:
        stored = session.execute(text("SELECT * FROM credentials")).one()
    assert "horse" not in str(stored)
    assert "horse" not in repr(LOGIN)
    assert stat.S_IMODE((site.home / "secrets.key").stat().st_mode) == 0o600
    assert [path.name for path in site.home.glob("secrets.key*")] == ["secrets.key"]


def test_another_key_or_none_is_told(site: Database) -> None:
    add_credential(site, LOGIN)
    key = site.home / "secrets.key"
    key.unlink()
    with pytest.raises(DatabaseError, match="No such file"):
        get_credential(site, "linux")
    key.write_bytes(b"no key")
    with pytest.raises(DatabaseError, match="store the credentials again"):
        get_credential(site, "linux")
    key.unlink()
    add_credential(site, replace(LOGIN, name="other"))
    with pytest.raises(DatabaseError, match="another key"):
        get_credential(site, "linux")


@pytest.mark.parametrize(("change", "why"), [({"name": "a/b"}, "slash"), ({"user": ""}, "no user"),
                                            ({"user": "a\nb"}, "no user"), ({"secret": ""}, "empty")])  # fmt: skip
def test_an_unacceptable_credential_is_refused(site: Database, change: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        add_credential(site, replace(LOGIN, **change))  # type: ignore[arg-type]
    assert list_credentials(site) == ()


def test_a_name_is_taken_once_and_what_a_job_uses_stays(site: Database) -> None:
    add_credential(site, LOGIN)
    with pytest.raises(Refused, match="taken"):
        add_credential(site, LOGIN)
    jobs.change_job(site, "nightly", jobs.JobChange(guests=(GuestSettings("", credential="linux"),)))
    with pytest.raises(Refused, match="'nightly' uses it"):
        remove_credential(site, "linux")
    jobs.change_job(site, "nightly", jobs.JobChange(guests=()))
    remove_credential(site, "linux")
    with pytest.raises(NotFound):
        remove_credential(site, "linux")


def test_the_host_key_that_was_accepted_last_holds(site: Database) -> None:
    assert host_key(site, "web:22") == ""
    accept_host_key(site, "web:22", "ssh-ed25519 AAAA")
    accept_host_key(site, "web:22", "ssh-ed25519 BBBB")
    assert (host_key(site, "web:22"), host_key(site, "db:22")) == ("ssh-ed25519 BBBB", "")


VSPHERE = Host("vc", "vpx://admin@vc/", "", credential="linux", thumbprint="AB:" * 31 + "AB",
               library=DiskLibrary("/opt/vddk", "vddk"))  # fmt: skip


def test_a_host_is_reached_by_its_credential(site: Database) -> None:
    add_credential(site, LOGIN)
    host = catalog.add_host(site, VSPHERE)
    assert catalog.get_host(site, "vc") == host == VSPHERE
    access = host_access(site, host)
    assert access == HostAccess(VSPHERE.uri, "admin", "correct horse", VSPHERE.thumbprint, VSPHERE.library)
    assert "horse" not in repr(access)
    assert host_access(site, catalog.get_host(site, "prod")) == HostAccess("qemu+ssh://root@prod/system")
    with pytest.raises(NotFound, match="no such credential"):
        host_access(site, replace(host, credential="gone"))


def test_what_a_host_uses_stays(site: Database) -> None:
    add_credential(site, LOGIN)
    add_credential(site, replace(LOGIN, name="other", user="ADMIN"))
    catalog.add_host(site, VSPHERE)
    with pytest.raises(Refused, match="host 'vc' uses it; change it: understudy host set 'vc' --credential OTHER"):
        remove_credential(site, "linux")
    catalog.change_host(site, "vc", catalog.HostChange(credential="other"))
    remove_credential(site, "linux")
    catalog.remove_host(site, "vc")
    remove_credential(site, "other")


def test_a_credential_that_goes_while_a_host_is_added_is_refused_by_the_database(site: Database) -> None:
    with pytest.raises(Refused, match="at the same moment"), site.transaction() as session:
        session.add(HostRow(name="vc", uri="vpx://vc/", scratch_dir="", max_snapshots=4, nbd_address="", thumbprint="",
                            credential="gone", library_dir="", library_plugin="vddk"))  # fmt: skip
