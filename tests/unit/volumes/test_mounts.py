"""Masks are paths as the guest sees them: each volume's reader is told what its own files are called there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from understudy.volumes import Finding, Wishes
from understudy.volumes.device_names import canonical, names_of
from understudy.volumes.masks import Masks
from understudy.volumes.mounted import Mounted, Told
from understudy.volumes.mounts import layout_of
from understudy.volumes.partitions import Partition


@dataclass
class System:
    """A file system of which only some files are asked for."""

    kind: str = "ext4"
    uuid: str = ""
    label: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)

    def read_file(self, path: str, most: int) -> bytes | None:
        found = self.files.get(path)
        return found if found is not None and len(found) <= most else None

    def find(self, wishes: Wishes) -> Finding:
        raise AssertionError


def volume(name: str, fstab: str | None = None) -> Mounted:
    return Mounted(System(files={} if fstab is None else {"/etc/fstab": fstab.encode()}), frozenset([f"UUID={name}"]))


def named(told: Told, *paths: str) -> list[bool]:
    return [told.masks is not None and told.masks.match(path) for path in paths]


FSTAB = """
# a comment
UUID=root  /        ext4  defaults  0 1
UUID=var   /var/    ext4  defaults  0 2
UUID=lib   /var//lib  ext4
UUID=boot  /boot    vfat
tmpfs      /tmp     tmpfs
//host/x   /net     cifs
/swap.img none swap sw 0 0
/var/lib/swap none swap sw 0 0
/var/cache/../swap none swap
/dev/vg/swap none swap
short line
"""


def test_a_mask_reaches_every_volume_that_is_mounted_below_it() -> None:
    root, var, lib = layout_of([volume("root", FSTAB), volume("var"), volume("lib")], ["/var/**"])
    assert named(root, "/var/a", "/var/lib/a", "/a") == [False, False, False]
    assert named(var, "/a", "/cache/a", "/lib/a") == [True, True, False]
    assert named(lib, "/a", "/docker/a") == [True, True]


def test_what_a_mount_point_hides_has_no_path_in_the_guest() -> None:
    root, lib = layout_of([volume("root", "UUID=lib /var/lib ext4"), volume("lib")], ["/var/**", "/**/*.iso"])
    assert named(root, "/var/a", "/var/lib/a", "/var/lib/a.iso", "/var/library/a") == [True, False, False, True]
    assert root.masks is not None
    assert [root.masks.may_match_below(path) for path in ("/var", "/var/lib", "/var/lib/x")] == [True, False, False]
    assert named(lib, "/x.iso", "/deep/x.iso") == [True, True]


def test_a_mask_of_a_whole_volume_names_all_its_files() -> None:
    _, lib = layout_of([volume("root", "UUID=lib /var/lib ext4"), volume("lib")], ["/var/lib/"])
    assert named(lib, "/a", "/a/b") == [True, True]
    assert lib.masks is not None
    assert lib.masks.may_match_below("/")


def test_wildcards_before_a_mount_point_reach_it() -> None:
    root, home, srv = layout_of(
        [volume("root", "UUID=home /home ext4\nUUID=srv /srv/data ext4"), volume("home"), volume("srv")],
        ["/*/cache/**", "/srv/*/x", "/h?me/*/tmp/*"])
    assert named(root, "/opt/cache/a", "/home/cache/a", "/srv/other/x", "/srv/data/x") == [True, False, True, False]
    assert named(home, "/cache/a", "/joe/tmp/a", "/joe/tmp/a/b", "/a") == [True, True, False, False]
    assert named(srv, "/x", "/cache/a") == [True, False]


def test_masks_speak_of_what_is_not_read_and_that_is_noted() -> None:
    fstab = "UUID=boot /boot vfat\n/srv/a /export none bind\ntmpfs /tmp tmpfs\n//host/x /net cifs\nhost:/y /nfs nfs"
    (root,) = layout_of([volume("root", fstab)], ["/boot/**", "/export/x", "/tmp/**", "/net/**", "/nfs/**", "/opt/**"])
    assert root.notes == tuple(
        f"the mask {mask} is not applied to what is mounted at {place}: it is not read, or not known"
        for mask, place in (("/boot/**", "/boot"), ("/export/x", "/export")))
    assert named(root, "/boot/a", "/export/x", "/tmp/a", "/opt/a") == [False, False, False, True]


def test_a_file_that_the_guest_sees_twice_is_named_if_both_names_are() -> None:
    fstab = "UUID=data /data ext4\nUUID=data /again ext4\nUUID=sub /again/sub ext4"
    _, data, _ = layout_of([volume("root", fstab), volume("data"), volume("sub")], ["/data/**", "/*/x/*"])
    assert named(data, "/a", "/x/a", "/sub/a") == [False, True, True]


def test_of_two_copies_of_a_volume_and_of_two_volumes_for_one_place_none_gets_masks() -> None:
    root, first, second = layout_of([volume("root", "UUID=a /data ext4"), volume("a"), volume("a")], ["/data/**"])
    assert named(first, "/x") == named(second, "/x") == named(root, "/data/x") == [False]
    assert "/data" in root.notes[0]
    root, first, second = layout_of(
        [volume("root", "UUID=a /data ext4\nUUID=b /data ext4 noauto"), volume("a"), volume("b")], ["/data/**"])
    assert named(first, "/x") == named(second, "/x") == named(root, "/data/x") == [False]


def test_two_systems_get_no_masks_but_the_copy_of_an_fstab_makes_no_system() -> None:
    for told in layout_of([volume("a", "UUID=a / ext4"), volume("b", "UUID=b / ext4")], ["/opt/**"]):
        assert told == Told(notes=("masks are not applied: several operating systems",))
    root, backup = layout_of([volume("a", "UUID=a / ext4"), volume("b", "UUID=a / ext4")], ["/opt/**"])
    assert named(root, "/opt/x") == [True]
    assert backup.notes == ("masks are not applied: no /etc/fstab that names it",)
    root, other = layout_of([volume("a", "LABEL=what / ext4"), volume("b")], ["/opt/**"])
    assert named(root, "/opt/x") == [True]
    assert other.masks is None


def test_swap_files_are_told_to_the_volume_that_holds_them() -> None:
    root, var, lib = layout_of([volume("root", FSTAB), volume("var"), volume("lib")], [])
    assert (root.swap_files, var.swap_files, lib.swap_files) == (("/swap.img",), (), ("/swap",))
    assert (root.masks, root.notes) == (None, ())


@pytest.mark.parametrize(("what", "same"), [
    ("UUID=AB-CD", "UUID=ab-cd"),
    ('UUID="ab-cd"', "UUID=ab-cd"),
    ("/dev/disk/by-uuid/AB-cd", "UUID=ab-cd"),
    ("LABEL=My Data", "LABEL=My Data"),
    ("/dev/disk/by-label/My\\x20Data", "LABEL=My Data"),
    ("/dev/disk/by-label/\\xc3\\x9cber", "LABEL=Über"),
    ("PARTUUID=ABCD-01", "PARTUUID=abcd-01"),
    ("/dev/disk/by-partuuid/abcd-01", "PARTUUID=abcd-01"),
    ("PARTLABEL=Root", "PARTLABEL=Root"),
    ("/dev/disk/by-partlabel/Root", "PARTLABEL=Root"),
    ("/dev/my-vg/a-root", "/dev/mapper/my--vg-a--root"),
    ("/dev/mapper/my--vg-a--root", "/dev/mapper/my--vg-a--root"),
    ("/dev/disk/by-id/dm-name-my--vg-a--root", "/dev/mapper/my--vg-a--root"),
    ("/dev/sda1", "/dev/sda1"),
    ("/dev/disk/by-path/pci-1", "/dev/disk/by-path/pci-1"),
])  # fmt: skip
def test_names_of_an_fstab_have_one_form(what: str, same: str) -> None:
    assert canonical(what) == same


def test_a_volume_has_the_names_of_what_it_is_and_where_it_lies() -> None:
    part = Partition(1 << 20, 1 << 20, "0fc63daf-8483-4772-8e79-3d69d8477de4", 1,
                     "11223344-5566-7788-99aa-bbccddeeff00", "data")
    assert {"UUID=u", "LABEL=L", "PARTUUID=11223344-5566-7788-99aa-bbccddeeff00",
            "PARTLABEL=data"} < names_of("u", "L", part)
    assert names_of("u", "", None, "v-g/lv") == {"UUID=u", "/dev/mapper/v--g-lv"}
    assert names_of("", "") == frozenset()


def test_masks_that_are_told_are_those_of_the_guest() -> None:
    """As they would be given for a volume that is its own root."""
    plain, told = Masks(["/var/cache/**"]), Masks(["/var/cache/**"], mounts=["/"], hidden=["/var/cache/x"])
    for path, hidden in (("/var/cache/a", False), ("/var/cache/x", True), ("/var/cache/x/a", True), ("/a", False)):
        assert told.match(path) is (plain.match(path) and not hidden)
