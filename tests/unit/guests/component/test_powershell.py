"""The program for Windows guests, as far as it can be checked without one: nothing here runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tree_sitter_powershell
from tree_sitter import Language, Parser

from understudy.guests.component import component_for
from understudy.guests.shells import Windows
from understudy.model.guest import GuestSystem


def parse(text: bytes) -> Any:
    return Parser(Language(tree_sitter_powershell.language())).parse(text).root_node


def nodes(node: Any, kind: str) -> Iterator[Any]:
    if node.type == kind:
        yield node
    for child in node.children:
        yield from nodes(child, kind)


def names(root: Any, kind: str, part: str) -> list[str]:
    return [child.text.decode() for node in nodes(root, kind) for child in node.children if child.type == part]


def test_it_is_what_a_windows_guest_gets_and_in_ascii() -> None:
    # PowerShell 5.1 takes a file without a mark for one in the guest's own code page.
    component_for(GuestSystem.WINDOWS).decode("ascii")


def test_it_and_what_is_run_around_it_are_powershell() -> None:
    told = Windows().prepare("p-"), Windows().leave(r"C:\it's", "p-7", r"C:\it's\p-7.ps1")
    commands = [words[-1].encode() for words in told]
    for text in (component_for(GuestSystem.WINDOWS), *commands):
        assert not parse(text).has_error
    assert b"'C:\\it''s'" in commands[1]
    assert parse(b"if (1 { }").has_error


def test_every_function_that_it_calls_is_there_and_every_one_is_called() -> None:
    root = parse(component_for(GuestSystem.WINDOWS))
    ours = set(names(root, "function_statement", "function_name"))
    called = set(names(root, "command", "command_name"))
    known = {"Get-ChildItem", "Get-Content", "Get-Item", "Get-Process", "Join-Path", "New-Item", "New-ItemProperty",
             "New-Object", "Out-Null", "Remove-Item", "Remove-ItemProperty", "Set-Content", "Sort-Object", "Test-Path"}
    assert len(ours) > 10
    assert called - known == ours


def test_no_parameter_is_hidden_by_a_variable_that_differs_only_in_case() -> None:
    """PowerShell does not tell them apart, so that one spelling stands for one thing in each function."""
    root = parse(component_for(GuestSystem.WINDOWS))
    for function in nodes(root, "function_statement"):
        spellings: dict[str, set[str]] = {}
        for name in re.findall(r"\$([A-Za-z]\w*)", function.text.decode()):
            spellings.setdefault(name.lower(), set()).add(name)
        assert [found for found in spellings.values() if len(found) > 1] == []
