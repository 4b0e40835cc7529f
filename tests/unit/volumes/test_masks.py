"""Masks name exactly the files that their description promises."""

from __future__ import annotations

import pytest

from understudy.volumes.masks import Masks


@pytest.mark.parametrize(("pattern", "path", "named"), [
    ("/var/cache/**", "/var/cache/apt/a.deb", True),
    ("/var/cache/**", "/var/cache/a", True),
    ("/var/cache/**", "/var/cache", False),
    ("/var/cache/**", "/var/cached/a", False),
    ("/var/cache/", "/var/cache/x/y", True),
    ("/var/*/x", "/var/a/x", True),
    ("/var/*/x", "/var/a/b/x", False),
    ("/**/*.iso", "/a.iso", True),
    ("/**/*.iso", "/a/b/c.iso", True),
    ("/**/*.iso", "/a/b/ciso", False),
    ("/srv/**/tmp/?", "/srv/tmp/a", True),
    ("/srv/**/tmp/?", "/srv/a/b/tmp/z", True),
    ("/srv/**/tmp/?", "/srv/atmp/z", False),
    ("\\Temp\\*", "/Temp/a", True),
])  # fmt: skip
def test_a_pattern_names_what_it_says(pattern: str, path: str, named: bool) -> None:
    assert Masks([pattern]).match(path) is named


def test_directories_are_entered_only_if_a_named_file_may_be_below() -> None:
    masks = Masks(["/var/cache/**", "/srv/*/tmp/x"])
    wanted = ["/", "/var", "/var/cache", "/var/cache/a/b", "/srv", "/srv/a", "/srv/a/tmp"]
    assert [masks.may_match_below(path) for path in wanted] == [True] * len(wanted)
    others = ["/var/lib", "/usr", "/srv/a/tmp2", "/srv/a/tmp/x"]
    assert [masks.may_match_below(path) for path in others] == [False] * len(others)
    assert Masks(["/**/*.iso"]).may_match_below("/any/where")
    assert Masks(["/a/**/b/c"]).may_match_below("/a/x/b")
    assert Masks(["/a"]).may_match_below("/")
    assert not Masks(["/a"]).may_match_below("/b")


def test_case_counts_unless_it_is_ignored() -> None:
    assert not Masks(["/Temp/*"]).match("/TEMP/a")
    assert Masks(["/Temp/*"], ignore_case=True).match("/TEMP/a")
    for other in ("/\u017fkip/a", "/S\u212aip/a", "/sk\u0131p/a"):  # letters that Windows takes for others
        assert not Masks(["/Skip/*"], ignore_case=True).match(other)


def test_no_masks_name_nothing() -> None:
    assert not Masks([]).match("/")
    assert not Masks([]).may_match_below("/")


@pytest.mark.parametrize("pattern", ["var/cache", "/", "/**", "/**/**", "//a", "/a/../b", "C:\\Temp\\*", ""])
def test_a_pattern_that_is_not_from_a_root_or_names_everything_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="mask"):
        Masks([pattern])
