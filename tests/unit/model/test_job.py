"""Settings of one VM hold before those of its job."""

from __future__ import annotations

from understudy.model.guest import DEFAULT_TRANSPORTS, GuestPolicy, GuestSettings, GuestTransport
from understudy.model.job import Job

SSH = (GuestTransport.SSH,)


def test_a_vm_has_its_own_settings_then_those_of_the_job_then_the_defaults() -> None:
    job = Job("i", "n", "s", "t", "d", ("a", "b"), guest_policy=GuestPolicy.TRY, guests=(
        GuestSettings("", GuestPolicy.OFF, SSH, credential="linux", pre_freeze=("/p",), applications=False,
                      freeze_deadline_s=20, applications_percent=30),
        GuestSettings("a", GuestPolicy.REQUIRE, address="a.lan", applications=True, script_timeout_s=7,
                      freeze_deadline_s=5, applications_percent=50),
    ))  # fmt: skip
    assert job.guest("a") == GuestSettings("a", GuestPolicy.REQUIRE, SSH, "a.lan", "linux", ("/p",), (), 7, True, 5, 50)
    assert job.guest("b") == GuestSettings("b", GuestPolicy.OFF, SSH, "", "linux", ("/p",), (), 60, False, 20, 30)
    plain = Job("i", "n", "s", "t", "d", ("a",), guest_policy=GuestPolicy.REQUIRE).guest("a")
    assert (plain.policy, plain.transports, plain.applications) == (GuestPolicy.REQUIRE, DEFAULT_TRANSPORTS, True)
    assert (plain.freeze_deadline_s, plain.applications_percent) == (10, 40)


def test_masks_without_a_vm_hold_for_every_one() -> None:
    job = Job("i", "n", "s", "t", "d", ("a", "b"), masks=(("", "/tmp/**"), ("a", "/x")))
    assert (job.masks_of("a"), job.masks_of("b")) == (("/tmp/**", "/x"), ("/tmp/**",))


def test_a_vm_that_is_called_by_its_path_has_a_replica_whose_name_a_platform_allows() -> None:
    job = Job("i", "n", "s", "t", "d", ("web",), suffix="_dr")
    assert (job.replica_name("web"), job.replica_name("DC1/vm/shop/web")) == ("web_dr", "DC1_vm_shop_web_dr")
