"""Jobs: what makes one acceptable, and when it may go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.controller import catalog, jobs, journal
from understudy.controller.database import Database
from understudy.errors import NotFound, Refused, UnderstudyError, UsageError
from understudy.model.guest import GuestPolicy, GuestSettings, GuestTransport
from understudy.model.job import Compression, Host, Job, Proxy, SnapshotMode
from understudy.units import KIB, MIB

JOB = Job("f" * 32, "hourly", "prod", "dr", "vault", ("a", "b"))


def test_every_setting_survives_storing(site: Database) -> None:
    catalog.add_proxy(site, Proxy("fast", "dr", 2))
    full = Job(
        jobs.new_job_id(), "full", "prod", "dr", "vault", ("z", "a:b", "ü"), 1000, ".r", SnapshotMode.EXTERNAL,
        GuestPolicy.REQUIRE, 256 * KIB, Compression.ZSTD_HIGH, "local", "fast", (("z", "vdb"), ("a:b", "sda")), False,
        masks=(("", "/tmp/**"), ("a:b", "C:\\Temp\\*")), exclude_swap=False, exclude_free=True,
        guests=(GuestSettings("", GuestPolicy.TRY, (GuestTransport.SSH,), script_timeout_s=5, freeze_deadline_s=7,
                              applications_percent=50),
                GuestSettings("z", address="z.lan:2222", pre_freeze=("/a/b", "/c"), applications=False)),
    )  # fmt: skip
    assert jobs.create_job(site, full) == full
    assert jobs.get_job(site, "full") == full
    assert [job.name for job in jobs.list_jobs(site)] == ["full", "nightly"]


def test_ids_are_new_each_time() -> None:
    ids = {jobs.new_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(text) == 32 and int(text, 16) for text in ids)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"name": ""}, UsageError, "the name is empty"),
        ({"name": "a/b"}, UsageError, "slash"),
        ({"name": "nightly"}, Refused, "the name is taken"),
        ({"source": "mars"}, NotFound, "host 'mars': no such host"),
        ({"target": "mars"}, NotFound, "host 'mars': no such host"),
        ({"datastore": "mars"}, NotFound, "datastore 'mars': no such datastore"),
        ({"target": "prod"}, UsageError, "datastore 'vault' is on host 'dr', not on 'prod'"),
        ({"points": 0}, UsageError, "0 restore points cannot be kept; choose 1 to 1000"),
        ({"points": 1001}, UsageError, "choose 1 to 1000"),
        ({"vms": ()}, UsageError, "no VM is named"),
        ({"vms": ("a", "a")}, UsageError, "a VM is named twice"),
        ({"vms": ("",)}, UsageError, "'' is no VM name"),
        ({"vms": ("//",)}, UsageError, "'//' is no VM name"),
        ({"vms": ("a/b", "a_b")}, UsageError, "the replicas of two would have the same name"),
        ({"vms": ("a\n",)}, UsageError, "is no VM name"),
        ({"suffix": ""}, UsageError, "the suffix '' is empty"),
        ({"suffix": "/x"}, UsageError, "no part of a VM name"),
        ({"source_proxy": "mars"}, NotFound, "proxy 'mars': no such proxy"),
        ({"target_proxy": "mars"}, NotFound, "proxy 'mars': no such proxy"),
        ({"block_size": 12345}, UsageError, "unknown block size 12345; choose one of 256K, 512K, 1M, 4M"),
        ({"excluded_disks": (("c", "vda"),)}, UsageError, "'c:vda' is not a disk of a VM of this job"),
        ({"excluded_disks": (("a", "vda"), ("a", "vda"))}, UsageError, "named twice"),
        ({"verify_every_s": -1}, UsageError, "choose 1s to 3650d"),
        ({"verify_every_s": 3651 * 86400}, UsageError, "so seldom"),
        ({"verify_rate": 1000}, UsageError, "1000 bytes a second are too few"),
        ({"masks": (("c", "/x/**"),)}, UsageError, "names no VM of this job"),
        ({"masks": (("", "x/**"),)}, UsageError, "does not begin at a root"),
        ({"masks": (("", "/**"),)}, UsageError, "names every file"),
        ({"masks": (("", "C:\\**"),)}, UsageError, "names every file"),
        ({"masks": (("", "/x"), ("", "/x"))}, UsageError, "given twice"),
        ({"guests": (GuestSettings("c"),)}, UsageError, "'c' is no VM of this job"),
        ({"guests": (GuestSettings("a", pre_freeze=("x",)),)}, UsageError, "not an absolute path"),
        ({"guests": (GuestSettings("a", script_timeout_s=9999),)}, UsageError, "9999 s"),
        ({"guests": (GuestSettings("a", freeze_deadline_s=2),)}, UsageError, "3 to 60"),
        ({"guests": (GuestSettings("a", freeze_deadline_s=61),)}, UsageError, "61 s"),
        ({"guests": (GuestSettings("a", applications_percent=61),)}, UsageError, "10 to 60 percent"),
        ({"guests": (GuestSettings("", address="x"),)}, UsageError, "do not share an address"),
        ({"guests": (GuestSettings("a", credential="x"),)}, NotFound, "no such credential"),
    ],
)
def test_an_unacceptable_job_is_refused_and_not_stored(
    site: Database, change: dict[str, object], error: type[UnderstudyError], why: str
) -> None:
    with pytest.raises(error, match=why):
        jobs.create_job(site, replace(JOB, **change))  # type: ignore[arg-type]
    assert [job.name for job in jobs.list_jobs(site)] == ["nightly"]


def test_source_and_target_may_be_one_host(site: Database) -> None:
    jobs.create_job(site, replace(JOB, source="dr"))


def test_a_job_is_disabled_and_enabled(site: Database) -> None:
    assert not jobs.set_enabled(site, "nightly", False).enabled
    assert not jobs.get_job(site, "nightly").enabled
    assert jobs.set_enabled(site, "nightly", True).enabled
    with pytest.raises(NotFound, match="job 'mars': no such job; see 'understudy job list'"):
        jobs.set_enabled(site, "mars", True)


def test_what_is_changed_is_stored_and_all_else_stays(site: Database) -> None:
    before = jobs.get_job(site, "nightly")
    assert jobs.change_job(site, "nightly", jobs.JobChange(verify_every_s=60, verify_rate=MIB)) == replace(
        before, verify_every_s=60, verify_rate=MIB)  # fmt: skip
    changed = jobs.change_job(site, "nightly", jobs.JobChange(points=2, verify_every_s=0))
    assert changed == jobs.get_job(site, "nightly") == replace(before, points=2, verify_rate=MIB)
    with pytest.raises(UsageError, match="0 restore points cannot be kept"):
        jobs.change_job(site, "nightly", jobs.JobChange(points=0))
    with pytest.raises(NotFound):
        jobs.change_job(site, "mars", jobs.JobChange(points=2))
    assert jobs.get_job(site, "nightly") == changed


def test_a_deleted_job_is_gone_with_all_its_rows(site: Database) -> None:
    jobs.delete_job(site, "nightly")
    assert jobs.list_jobs(site) == ()
    with pytest.raises(NotFound):
        jobs.delete_job(site, "nightly")
    jobs.create_job(site, replace(JOB, name="nightly"))
    catalog.add_host(site, Host("third", "qemu:///system", "/s"))


def test_a_job_with_an_unfinished_session_cannot_be_deleted(site: Database) -> None:
    session = journal.insert_session(site, "nightly")
    with pytest.raises(Refused, match=f"session {session} has not ended; wait for it, or 'understudy session stop"):
        jobs.delete_job(site, "nightly")
    journal.request_cancel(site, session)
    jobs.delete_job(site, "nightly")
