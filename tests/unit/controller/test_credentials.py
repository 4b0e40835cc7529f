"""Credentials are stored encrypted, and belong to the home that stored them."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest
from sqlalchemy import text

from understudy.controller import jobs
from understudy.controller.credentials import (
    Credential,
    CredentialKind,
    accept_host_key,
    add_credential,
    get_credential,
    host_key,
    list_credentials,
    remove_credential,
)
from understudy.controller.database import Database
from understudy.errors import DatabaseError, NotFound, Refused, UsageError
from understudy.model.guest import GuestSettings

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
