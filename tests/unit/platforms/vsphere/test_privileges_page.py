"""docs/vsphere.md lists the privileges that are checked. UNDERSTUDY_WRITE_DOCS=1 writes the table."""

from __future__ import annotations

import os
import re
from pathlib import Path

from understudy.model.preflight import Role
from understudy.platforms.vsphere.privileges import NEEDED

PAGE = Path(__file__).parents[4] / "docs" / "vsphere.md"
TABLE = re.compile(r"(?<=\| privilege \| on \| what for \|\n\|---\|---\|---\|\n)(?:\|.*\n)*")


def test_the_page_has_the_table_of_privileges() -> None:
    targets = {True: ", as a target", False: ""}
    table = "".join(
        f"| {item.privilege} | {item.place} | {item.purpose}{targets[item.role is Role.TARGET]} |\n" for item in NEEDED
    )
    page = PAGE.read_text()
    if os.environ.get("UNDERSTUDY_WRITE_DOCS"):
        page = TABLE.sub(lambda _: table, page, count=1)
        PAGE.write_text(page)
    found = TABLE.search(page)
    assert found is not None
    assert found[0] == table
