"""Who logs in to a guest through its platform: a user with a password, and only where the platform has a way in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.replication.test_run import VM
from understudy.controller import jobs
from understudy.controller.credentials import Credential, CredentialKind, add_credential, guest_login
from understudy.controller.database import Database
from understudy.controller.sites import _HostGuests
from understudy.errors import NotFound
from understudy.model.guest import GuestSettings
from understudy.model.guest_operations import GuestLogin
from understudy.model.job import Host, Job

DB, WEB = replace(VM, name="db"), replace(VM, name="web 1")


@pytest.fixture
def job(site: Database) -> Job:
    """Has a password for all VMs, and a key for one."""
    add_credential(site, Credential("linux", "admin", CredentialKind.PASSWORD, "correct horse"))
    add_credential(site, Credential("key", "root", CredentialKind.KEY, "a key"))
    settings = (GuestSettings("", credential="linux"), GuestSettings("web 1", credential="key"))
    return jobs.change_job(site, "nightly", jobs.JobChange(guests=settings))


def test_a_password_serves_and_a_key_does_not(site: Database, job: Job) -> None:
    login = guest_login(site, job, DB)
    assert login == GuestLogin("admin", "correct horse")
    assert "horse" not in repr(login)
    assert guest_login(site, job, WEB) is None
    assert guest_login(site, replace(job, guests=()), DB) is None
    with pytest.raises(NotFound):
        guest_login(site, replace(job, guests=(GuestSettings("", credential="gone"),)), DB)


def test_only_guests_of_vsphere_are_reached_through_the_platform(site: Database, job: Job) -> None:
    assert _HostGuests(site, Host("vc", "vpx://vc.lan/", "")).login(job, DB) is not None
    assert _HostGuests(site, Host("a", "qemu:///system", "/scratch")).login(job, DB) is None
