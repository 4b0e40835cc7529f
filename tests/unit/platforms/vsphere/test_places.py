"""Names and inventory paths of VMs."""

from __future__ import annotations

import pytest

from understudy.errors import NotFound, Refused
from understudy.platforms.vsphere.places import Directory, Node, directory_of

ABOVE = {
    node.moref: node
    for node in (
        Node("group-d1", "Datacenters", ""),
        Node("group-d2", "Europe", "group-d1"),
        Node("dc-1", "Berlin", "group-d2"),
        Node("dc-2", "Paris", "group-d1"),
        Node("group-v1", "vm", "dc-1"),
        Node("group-v2", "vm", "dc-2"),
        Node("group-v3", "web", "group-v1"),
        Node("resgroup-v9", "shop", "group-v3"),
    )
}


@pytest.fixture
def directory() -> Directory:
    nodes = [Node("vm-1", "www", "group-v3"), Node("vm-2", "www", "group-v2"), Node("vm-3", "db", "group-v1"),
             Node("vm-4", "app", "resgroup-v9"), Node("vm-5", "lost", "group-v77"), Node("vm-6", "", "")]  # fmt: skip
    return directory_of(nodes, ABOVE)


def test_paths_lead_from_below_the_root_to_the_vm(directory: Directory) -> None:
    assert {place.moref: place.path for place in directory.places} == {
        "vm-1": "Europe/Berlin/vm/web/www", "vm-2": "Paris/vm/www", "vm-3": "Europe/Berlin/vm/db",
        "vm-4": "Europe/Berlin/vm/web/shop/app", "vm-5": "lost",
    }  # fmt: skip


def test_a_vm_is_called_by_its_name_only_if_no_other_has_it(directory: Directory) -> None:
    called = {place.moref: directory.called(place) for place in directory.places}
    assert called["vm-1"] == "Europe/Berlin/vm/web/www"
    assert called["vm-2"] == "Paris/vm/www"
    assert called["vm-3"] == "db"
    for moref, name in called.items():
        assert directory.require(name, "vcenter").moref == moref


def test_an_ambiguous_name_is_refused_with_the_paths(directory: Directory) -> None:
    with pytest.raises(Refused, match="2 VMs have this name: Europe/Berlin/vm/web/www, Paris/vm/www; name it by"):
        directory.find("www")


def test_a_path_is_good_also_for_a_vm_whose_name_is_unique(directory: Directory) -> None:
    assert directory.require("Europe/Berlin/vm/db", "vcenter").moref == "vm-3"


def test_a_name_that_nobody_has_is_not_found(directory: Directory) -> None:
    assert directory.find("nobody") is None
    with pytest.raises(NotFound, match="vcenter has no VM of that name"):
        directory.require("Berlin/vm/db", "vcenter")
