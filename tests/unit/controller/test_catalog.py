"""Hosts, datastores and proxies: what may be stored, and what may not be removed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.controller import catalog, frozen, jobs, replicas
from understudy.controller.catalog import HostChange
from understudy.controller.database import Database
from understudy.controller.naming import check_uri
from understudy.controller.records import FrozenGuest
from understudy.errors import NotFound, Refused, UsageError
from understudy.model.job import Datastore, Host, Job, Proxy
from understudy.model.replica import Replica, ReplicaIdentity, ReplicaState

URI = "qemu:///system"
BAD_NAMES = ["", "  ", "x" * 101, "a/b", "a\nb", "a\x1b[31m", "a\x00"]


def test_a_host_is_stored_listed_and_removed(database: Database) -> None:
    host = catalog.add_host(database, Host("Köln 1", "qemu+ssh://root@kvm:2222/system?keyfile=/root/k", "/s"))
    assert catalog.get_host(database, "Köln 1") == host
    assert catalog.list_hosts(database) == (host,)
    catalog.remove_host(database, "Köln 1")
    assert catalog.list_hosts(database) == ()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_an_unusable_name_is_refused(database: Database, name: str) -> None:
    with pytest.raises(UsageError):
        catalog.add_host(database, Host(name, URI, "/s"))
    with pytest.raises(UsageError):
        catalog.add_proxy(database, Proxy(name, "", 1))


def test_a_name_is_taken_once(site: Database) -> None:
    with pytest.raises(Refused, match="add host 'prod': the name is taken"):
        catalog.add_host(site, Host("prod", URI, "/s"))
    with pytest.raises(Refused, match="add datastore 'vault': the name is taken"):
        catalog.add_datastore(site, Datastore("vault", "dr", "qcow2", "/other"))
    with pytest.raises(Refused, match="add proxy 'local': the name is taken"):
        catalog.add_proxy(site, Proxy("local", "", 1))


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+ssh://root:geheim@host/system",
        "qemu+ssh://root:@host/system",
        "qemu+ssh://root:ge@heim@host/system",
        "qemu+ssh://root:geheim#x@host/system",
        "qemu+ssh://root:geheim?x@host/system",
        "qemu+ssh://root:geheim/x@host/system",
        "qemu+ssh://host/system?password=geheim",
        "qemu+libssh2://host/system?Passwd=geheim",
        "esx://host/?auth_token=geheim",
        "root:geheim@host",
        "qemu+ssh://[root:geheim@host/system",
        "qemu+ssh://root:gehe\nim@host/system",
    ],
)
def test_a_uri_with_a_password_is_refused_and_appears_nowhere(tmp_path: Path, database: Database, uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        catalog.add_host(database, Host("h", uri, "/s"))
    assert "geheim" not in repr(caught.value)
    assert "geheim" not in str(caught.value)
    assert catalog.list_hosts(database) == ()
    assert not any(b"geheim" in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


@pytest.mark.parametrize(
    "uri",
    [
        "qemu:///system",
        "qemu+ssh://root@kvm2/system",
        "qemu+ssh://kvm2:22/system",
        "qemu+ssh://root@[fe80::1]:22/system",
        "qemu+tls://kvm2/system?pkipath=/etc/pki",
        "qemu+unix:///system?socket=/run/a@b/libvirt-sock",
        "test:///default",
    ],
)
def test_a_uri_without_a_password_is_accepted(uri: str) -> None:
    check_uri("add host", uri)


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="/"), min_size=1))
def test_no_password_slips_through(password: str) -> None:
    with pytest.raises(UsageError):
        check_uri("add host", f"qemu+ssh://root:{password}@host/system")


@pytest.mark.parametrize("path", ["", "relative", "/a/../b", "/a\n"])
def test_a_scratch_directory_is_an_absolute_path(database: Database, path: str) -> None:
    with pytest.raises(UsageError):
        catalog.add_host(database, Host("h", URI, path))


def test_the_limits_of_a_host_are_stored_changed_and_checked(database: Database) -> None:
    catalog.add_host(database, Host("h", URI, "/s", max_snapshots=2, nbd_address="10.0.0.7"))
    assert catalog.change_host(database, "h", HostChange(max_snapshots=9)) == Host("h", URI, "/s", 9, "10.0.0.7")
    assert catalog.change_host(database, "h", HostChange(nbd_address="fe80::1")) == catalog.get_host(database, "h")
    assert catalog.get_host(database, "h") == Host("h", URI, "/s", 9, "fe80::1")
    assert catalog.change_host(database, "h", HostChange(nbd_address="")).nbd_address == ""
    with pytest.raises(UsageError, match="0 is no number of snapshots"):
        catalog.change_host(database, "h", HostChange(max_snapshots=0))
    with pytest.raises(UsageError, match="is no number of snapshots"):
        catalog.add_host(database, Host("i", URI, "/s", max_snapshots=catalog.MAX_LIMIT + 1))
    with pytest.raises(NotFound):
        catalog.change_host(database, "mars", HostChange(max_snapshots=1))
    assert catalog.get_host(database, "h").max_snapshots == 9


@pytest.mark.parametrize("address", ["a b", "kvm2:10809", "[::1]", "a/b", "kvm\n"])
def test_an_nbd_address_is_a_name_or_an_address_without_a_port(database: Database, address: str) -> None:
    with pytest.raises(UsageError, match="is no network name"):
        catalog.add_host(database, Host("h", URI, "/s", nbd_address=address))


def test_the_limit_of_a_datastore_is_stored_changed_and_checked(site: Database) -> None:
    added = catalog.add_datastore(site, Datastore("two", "dr", "qcow2", "/two", max_transfers=3))
    assert catalog.get_datastore(site, "two") == added
    assert catalog.change_datastore(site, "two", max_transfers=0).max_transfers == 0
    with pytest.raises(UsageError, match="is no number of disks"):
        catalog.change_datastore(site, "two", max_transfers=-1)
    with pytest.raises(UsageError, match="is no number of disks"):
        catalog.add_datastore(site, Datastore("x", "dr", "qcow2", "/x", max_transfers=catalog.MAX_LIMIT + 1))
    with pytest.raises(NotFound):
        catalog.change_datastore(site, "mars", max_transfers=1)


def test_a_datastore_is_stored_in_normal_form_and_removed(site: Database) -> None:
    added = catalog.add_datastore(site, Datastore("two", "dr", "qcow2", "//srv//two/./x/"))
    assert added.path == "/srv/two/x"
    assert catalog.get_datastore(site, "two") == added
    assert [item.name for item in catalog.list_datastores(site)] == ["two", "vault"]
    catalog.remove_datastore(site, "two")
    with pytest.raises(NotFound, match="datastore 'two': no such datastore; see 'understudy datastore list'"):
        catalog.get_datastore(site, "two")


def test_a_datastore_needs_a_known_host_kind_and_path(site: Database) -> None:
    with pytest.raises(NotFound, match="host 'mars': no such host"):
        catalog.add_datastore(site, Datastore("x", "mars", "qcow2", "/x"))
    with pytest.raises(UsageError, match="unknown kind 'floppy'; known kinds: qcow2"):
        catalog.add_datastore(site, Datastore("x", "dr", "floppy", "/x"))
    with pytest.raises(UsageError, match="not an absolute path"):
        catalog.add_datastore(site, Datastore("x", "dr", "qcow2", "x"))


def test_one_directory_is_one_datastore(site: Database) -> None:
    with pytest.raises(Refused, match="datastore 'vault' is the same directory"):
        catalog.add_datastore(site, Datastore("x", "dr", "qcow2", "/srv//replicas/"))
    catalog.add_datastore(site, Datastore("x", "prod", "qcow2", "/srv/replicas"))


def test_the_local_proxy_always_exists(database: Database) -> None:
    assert catalog.list_proxies(database) == (Proxy("local", "", os.cpu_count() or 1),)
    with pytest.raises(Refused, match="remove proxy 'local': it is built in"):
        catalog.remove_proxy(database, "local")


def test_a_proxy_is_stored_and_removed(site: Database) -> None:
    added = catalog.add_proxy(site, Proxy("fast", "dr", 8))
    assert catalog.get_proxy(site, "fast") == added
    catalog.remove_proxy(site, "fast")
    with pytest.raises(NotFound):
        catalog.get_proxy(site, "fast")
    with pytest.raises(NotFound, match="host 'mars'"):
        catalog.add_proxy(site, Proxy("fast", "mars", 8))
    with pytest.raises(UsageError):
        catalog.add_proxy(site, Proxy("fast", "", 1001))


def test_what_is_unknown_cannot_be_removed(database: Database) -> None:
    for remove in (catalog.remove_host, catalog.remove_datastore, catalog.remove_proxy):
        with pytest.raises(NotFound):
            remove(database, "mars")


def test_what_is_used_cannot_be_removed_and_the_users_are_named(site: Database) -> None:
    catalog.add_proxy(site, Proxy("fast", "prod", 2))
    jobs.create_job(site, Job("2", "hourly", "prod", "dr", "vault", ("x",), source_proxy="fast"))
    identity = ReplicaIdentity("r1", "web_replica", "2", "hourly", "web", "u", "d")
    replicas.save_replica(site, Replica(identity, ReplicaState.READY, ()), "vault", "dr")
    frozen.record_frozen(site, FrozenGuest("prod", "1234", 1, "t", "t"))
    expected = {
        (catalog.remove_host, "prod"): "it is used by job 'hourly', job 'nightly', proxy 'fast', frozen VM '1234'",
        (catalog.remove_host, "dr"): "job 'hourly', job 'nightly', datastore 'vault', replica 'web_replica'; remove",
        (catalog.remove_datastore, "vault"): "job 'hourly', job 'nightly', replica 'web_replica'",
        (catalog.remove_proxy, "fast"): "it is used by job 'hourly'",
    }
    for (remove, name), why in expected.items():
        with pytest.raises(Refused, match=re.escape(why)):
            remove(site, name)
    assert len(catalog.list_hosts(site)) == 2


def test_many_users_are_counted(site: Database) -> None:
    for number in range(6):
        jobs.create_job(site, Job(str(number), f"j{number}", "prod", "dr", "vault", ("x",)))
    with pytest.raises(Refused, match="job 'j3', job 'j4' and 2 more; remove what uses it first"):
        catalog.remove_datastore(site, "vault")
