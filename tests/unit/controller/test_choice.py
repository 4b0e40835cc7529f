"""The choice of proxies: who may carry a task, who of them does, and what is said when nobody can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.controller.choice import Route, best_route, host_proxies, is_this_machine, possible_routes
from understudy.errors import MoverError
from understudy.model.job import Host, Job, Proxy, ProxyKind
from understudy.model.transfer import TransportMode

HERE, THERE, DR = Host("here", "qemu:///system", "/s"), Host("there", "qemu+ssh://root@kvm2/system", "/s"), Host(
    "dr", "qemu+unix:///system?socket=/run/dr", "/s"
)
LOCAL = Proxy("local", "", 2)
SECOND = Proxy("second", "", 2)
AT_THERE = Proxy("at-there", "there", 2, ProxyKind.SERVICE)
ALSO_THERE = Proxy("also-there", "there", 2, ProxyKind.SERVICE)
AT_DR = Proxy("at-dr", "dr", 2, ProxyKind.SERVICE)
AT_OTHER = Proxy("at-other", "other", 2, ProxyKind.SERVICE)
ALL = (ALSO_THERE, AT_DR, AT_OTHER, AT_THERE, LOCAL, SECOND)
NETWORK = TransportMode.NETWORK


def routes(
    source: Host, target: Host, *proxies: Proxy, source_proxy: str = "", target_proxy: str = "", dead: str = ""
) -> set[Route]:
    job = Job("1", "nightly", source.name, target.name, "ds", ("web",), source_proxy=source_proxy,
              target_proxy=target_proxy)  # fmt: skip
    return set(possible_routes(job, source, target, proxies, lambda name: name not in dead.split()))


@pytest.mark.parametrize(
    ("uri", "here"),
    [
        ("qemu:///system", True),
        ("qemu+unix:///system?socket=/lab/alpha/libvirt-sock", True),
        ("qemu+tcp://localhost/system", True),
        ("qemu+tls://[::1]:16514/system", True),
        ("qemu+ssh://root@alpha/system", False),
        ("qemu+tls://10.0.0.7/system", False),
    ],
)
def test_a_host_is_of_this_machine_when_its_uri_names_no_other(uri: str, here: bool) -> None:
    assert is_this_machine(replace(HERE, uri=uri)) is here


def test_proxies_on_the_host_of_the_disks_come_first_and_share_its_tasks() -> None:
    assert routes(THERE, HERE, *ALL) == {
        Route(source, target) for source in ("at-there", "also-there") for target in ("local", "second")
    }


def test_a_proxy_of_this_machine_serves_every_host_of_this_machine() -> None:
    assert routes(HERE, HERE, LOCAL, AT_OTHER) == {Route("local", "local")}
    assert routes(HERE, DR, LOCAL, AT_DR) == {Route("local", "at-dr")}


def test_a_proxy_that_was_made_for_a_host_comes_before_those_of_its_machine() -> None:
    assert routes(DR, HERE, LOCAL, AT_DR) == {Route("at-dr", "local")}


def test_without_a_proxy_on_the_host_any_proxy_reads_over_the_network() -> None:
    assert routes(THERE, DR, LOCAL, AT_DR, AT_OTHER) == {
        Route("local", "at-dr", NETWORK), Route("at-dr", "at-dr", NETWORK), Route("at-other", "at-dr", NETWORK),
    }  # fmt: skip


def test_a_service_of_another_host_never_writes_by_itself() -> None:
    assert routes(HERE, THERE, LOCAL, AT_DR) == {Route("local", "local")}


def test_files_of_a_host_are_seen_by_proxies_on_it_and_by_no_other() -> None:
    assert host_proxies(THERE, ALL, lambda _: True) == [ALSO_THERE, AT_THERE]
    assert host_proxies(HERE, ALL, lambda _: True) == [LOCAL, SECOND]
    assert host_proxies(THERE, (LOCAL, AT_DR), lambda _: True) == []
    with pytest.raises(MoverError, match="proxy on host 'there'"):
        host_proxies(THERE, ALL, lambda _: False)


def test_a_fixed_proxy_is_taken_whatever_else_there_is() -> None:
    assert routes(THERE, DR, *ALL, source_proxy="at-there", target_proxy="at-other") == {Route("at-there", "at-other")}
    assert routes(THERE, DR, *ALL, source_proxy="local", target_proxy="local") == {Route("local", "local", NETWORK)}


def test_a_proxy_that_does_not_answer_is_passed_over() -> None:
    assert routes(THERE, DR, *ALL, dead="at-there at-dr") == {
        Route("also-there", "local"), Route("also-there", "second")
    }  # fmt: skip
    network = routes(THERE, DR, *ALL, dead="at-there also-there at-other second")
    assert {(route.source, route.transport) for route in network} == {("local", NETWORK), ("at-dr", NETWORK)}


def test_a_fixed_proxy_that_does_not_answer_is_an_error_that_names_it() -> None:
    with pytest.raises(MoverError, match="proxy 'at-there': it does not answer, and the job names it"):
        routes(THERE, DR, *ALL, source_proxy="at-there", dead="at-there")
    with pytest.raises(MoverError, match="proxy 'at-dr'"):
        routes(THERE, DR, *ALL, target_proxy="at-dr", dead="at-dr")


def test_when_nobody_answers_the_error_says_for_what() -> None:
    with pytest.raises(MoverError, match="target proxy for host 'dr': no proxy"):
        routes(THERE, DR, AT_THERE, LOCAL, AT_OTHER, dead="local")
    with pytest.raises(MoverError, match="source proxy for host 'here'"):
        routes(HERE, DR, LOCAL, dead="local")


def test_the_least_loaded_proxies_are_the_best_and_names_decide_a_tie() -> None:
    loads = {"a": 0.5, "b": 0.25, "c": 0.25, "x": 1.0, "y": 0.0}
    pairs = [Route(source, target) for source in "abc" for target in "xy"]
    assert best_route(pairs, loads.__getitem__) == Route("b", "y")


def test_a_route_without_a_wire_is_better_than_the_least_loaded_one() -> None:
    loads = {"a": 0.5, "b": 0.0}
    pairs = [Route(source, target) for source in "ab" for target in "ab"]
    assert best_route(pairs, loads.__getitem__) == Route("b", "b")
    assert best_route([Route("a", "a"), Route("b", "a"), Route("a", "b")], loads.__getitem__) == Route("a", "a")


VCENTER = Host("vc", "vpx://vc.lan/", "")
BY_LIBRARY = TransportMode.LIBRARY


def library_routes(
    target: Host, *proxies: Proxy, without: str = "", dead: str = "", source_proxy: str = ""
) -> set[Route]:
    job = Job("1", "nightly", "vc", target.name, "ds", ("web",), source_proxy=source_proxy)
    return set(possible_routes(job, VCENTER, target, proxies, lambda name: name not in dead.split(),
                               lambda name: f"no library on {name}" if name in without.split() else ""))  # fmt: skip


def test_the_proxies_of_the_target_read_by_the_disk_library_so_that_there_is_no_wire() -> None:
    assert library_routes(THERE, *ALL) == {
        Route(reader, writer, BY_LIBRARY)
        for reader in ("at-there", "also-there") for writer in ("at-there", "also-there")
    }  # fmt: skip
    assert best_route(library_routes(THERE, *ALL), lambda _: 0.5) == Route("also-there", "also-there", BY_LIBRARY)


def test_a_target_proxy_without_the_disk_library_is_read_for_by_any_other_that_has_it() -> None:
    found = library_routes(DR, *ALL, without="at-dr at-there", dead="local")
    assert found == {Route(reader, "at-dr", BY_LIBRARY) for reader in ("also-there", "at-other", "second")}


def test_a_job_that_names_its_source_proxy_gets_it_whoever_writes() -> None:
    assert library_routes(DR, *ALL, source_proxy="at-other") == {Route("at-other", "at-dr", BY_LIBRARY)}


def test_without_a_proxy_that_can_use_the_disk_library_the_error_says_of_each_why() -> None:
    with pytest.raises(MoverError, match=r"host 'vc': .*at-dr: no library on at-dr; local: no library on local; see"):
        library_routes(DR, AT_DR, LOCAL, AT_OTHER, without="at-dr local", dead="at-other")


def test_nobody_sees_files_of_a_host_whose_disks_are_reached_by_a_library() -> None:
    assert host_proxies(VCENTER, [*ALL, replace(AT_DR, host="vc")], lambda _: True) == []
