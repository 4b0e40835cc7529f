"""Merging snapshot deltas: tried again after growing pauses, past a daemon that restarts, and told so that it helps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import libvirt
import pytest

from understudy.context import CancelToken, Context
from understudy.errors import HostUnreachable, PlatformError
from understudy.model.inventory import Vm, VmState
from understudy.model.snapshot import Tag
from understudy.platforms import CommitPatience
from understudy.platforms.libvirt.commit import Deltas, commit_deltas

TAG = Tag("0123456789abcdef", "6f7a7f2e-0e1b-4c3e-9d0b-1f3f3a1b2c3d", 42)
VM = Vm("web server", TAG.vm_uuid, VmState.RUNNING, "x86_64", "q35", "bios", 1, 1, (), (), True, True, "<domain/>")
URI = "qemu+ssh://root@prod/system"
PATIENCE = CommitPatience((1.0, 3.0, 9.0, 27.0), stalled_s=0.1)
COPY, ACTIVE = libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY, libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT


def delta(disk: str) -> str:
    return f"/images/{TAG}-{disk}.delta"


class Token(CancelToken):
    """Does not sleep; notes the pauses, and does something in each."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._acts = list(acts)

    def wait(self, timeout_s: float) -> bool:
        self.pauses.append(timeout_s)
        if self._acts:
            self._acts.pop(0)()
        return self.cancelled


@dataclass
class Domain:
    """A domain whose disks write to deltas; ``problems`` are raised by the next commits, of whatever disk."""

    deltas: dict[str, str] = field(default_factory=lambda: {"vda": delta("vda")})
    active: bool = True
    problems: list[str] = field(default_factory=list)
    jobs: dict[str, int] = field(default_factory=dict)
    ready: bool = True
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    unreachable: int = 0

    def find(self) -> libvirt.virDomain:
        if self.unreachable:
            self.unreachable -= 1
            raise HostUnreachable("host", "the daemon is gone")
        return cast("libvirt.virDomain", self)

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.active

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        def mirror(disk: str) -> str:
            ready = " ready='yes'" if self.ready else ""
            return f"<mirror job='active-commit'{ready}/>" if self.jobs.get(disk) == ACTIVE else ""

        disks = "".join(f"<disk><source file='{path}'/><target dev='{disk}'/>{mirror(disk)}</disk>"
                        for disk, path in self.deltas.items())  # fmt: skip
        return f"<domain><devices>{disks}</devices></domain>"

    def blockJobInfo(self, disk: str, _flags: int) -> dict[str, int]:  # noqa: N802 - libvirt's name
        return {"type": self.jobs[disk], "cur": 1} if disk in self.jobs else {}

    def blockCommit(self, disk: str, *arguments: Any) -> None:  # noqa: N802 - libvirt's name
        self.calls.append(("commit", disk, arguments))
        if self.problems:
            raise libvirt.libvirtError(self.problems.pop(0))
        self.jobs[disk] = ACTIVE

    def blockJobAbort(self, disk: str, flags: int) -> None:  # noqa: N802 - libvirt's name
        self.calls.append(("abort", disk, flags))
        assert self.jobs.pop(disk) == ACTIVE
        if flags == libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT:
            self.deltas[disk] = "/images/base.qcow2"


def merge(domain: Domain, token: Token | None = None, made: dict[str, str] | None = None) -> list[str]:
    deltas = Deltas(URI, VM, TAG, domain.find, made or {})
    return commit_deltas(Context(token or Token()), deltas, PATIENCE)


def test_every_delta_of_the_job_is_merged_into_its_own_base_only() -> None:
    domain = Domain({"vda": delta("vda"), "vdb": "/images/other.qcow2", "vdc": delta("vdc")})
    assert merge(domain) == [delta("vda"), delta("vdc")]
    flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
    assert [call for call in domain.calls if call[0] == "commit"] == [
        ("commit", disk, (None, None, 0, flags)) for disk in ("vda", "vdc")
    ]


def test_a_merge_that_fails_is_tried_again_four_times_with_growing_pauses() -> None:
    token, domain = Token(), Domain(problems=["block copy still active: not ready for pivot yet"] * 4)
    assert merge(domain, token) == [delta("vda")]
    assert token.pauses == list(PATIENCE.pauses)
    assert sorted(CommitPatience().pauses) == list(CommitPatience().pauses)
    assert len(set(CommitPatience().pauses)) == 4


def test_what_stays_is_told_with_a_command_line_for_each_disk_that_is_right_in_a_shell() -> None:
    domain = Domain({"vda": delta("vda"), "vdb": delta("vdb")}, problems=["first"] + ["no space left"] * 9)
    with pytest.raises(PlatformError) as caught:
        merge(domain)
    told = str(caught.value)
    assert f"vda ({delta('vda')}): no space left" in told
    assert [shlex.split(line) for line in re.findall(r"`([^`]+)`", told)] == [
        ["virsh", "-c", URI, "blockcommit", "web server", disk, "--active", "--shallow", "--pivot", "--wait",
         "--verbose"] for disk in ("vda", "vdb")
    ]  # fmt: skip
    for disk in ("vda", "vdb"):
        assert f"only then delete {delta(disk)}" in told


def test_only_what_stays_is_told() -> None:
    domain = Domain({"vda": delta("vda"), "vdb": delta("vdb")}, jobs={"vdb": COPY})
    with pytest.raises(PlatformError) as caught:
        merge(domain)
    assert delta("vda") not in str(caught.value)
    assert "vdb" in str(caught.value)


def test_the_operators_wish_to_end_ends_the_pauses_but_not_the_first_try() -> None:
    token, domain = Token(), Domain(problems=["busy"] * 9)
    token.cancel()
    with pytest.raises(PlatformError):
        merge(domain, token)
    assert token.pauses == [1.0]
    assert merge(Domain(), token) == [delta("vda")]


def test_a_block_job_of_somebody_else_is_waited_for_and_never_ended() -> None:
    domain = Domain(jobs={"vda": COPY})
    with pytest.raises(PlatformError, match=r"another program runs a block job on it \(copy\)"):
        merge(domain)
    assert domain.calls == []
    token = Token(lambda: None, domain.jobs.clear)
    assert merge(domain, token) == [delta("vda")]
    assert token.pauses == [1.0, 3.0]


def test_a_commit_of_a_dead_session_is_gone_on_with() -> None:
    domain = Domain(jobs={"vda": ACTIVE})
    assert merge(domain) == [delta("vda")]
    assert [call[0] for call in domain.calls] == ["abort"]


def test_a_commit_without_progress_is_ended_if_it_was_begun_here_and_only_then() -> None:
    domain = Domain(ready=False)
    with pytest.raises(PlatformError, match="no progress"):
        merge(domain)
    assert [call for call in domain.calls if call[0] == "abort"] == [("abort", "vda", 0)] * 5
    found = Domain(ready=False, jobs={"vda": ACTIVE})
    with pytest.raises(PlatformError, match="no progress"):
        merge(found)
    assert found.calls == []


def test_a_commit_that_ends_by_itself_is_not_waited_for() -> None:
    class Failing(Domain):
        def blockCommit(self, disk: str, *arguments: Any) -> None:  # noqa: N802 - libvirt's name
            pass  # it ends at once, by an error of the disk

    domain = Failing(ready=False)
    with pytest.raises(PlatformError, match="ended before it was ready"):
        merge(domain)


def test_a_daemon_that_restarts_is_waited_for() -> None:
    token, domain = Token(), Domain(unreachable=2)
    assert merge(domain, token, {"vda": delta("vda")}) == [delta("vda")]
    assert token.pauses == [1.0, 3.0]
    with pytest.raises(PlatformError, match="the daemon is gone") as caught:
        merge(Domain(unreachable=9), made={"vda": delta("vda")})
    assert "blockcommit" in str(caught.value)
    with pytest.raises(HostUnreachable):
        merge(Domain(unreachable=9))


def test_a_vm_that_is_off_keeps_its_delta_without_any_pause() -> None:
    token = Token()
    with pytest.raises(PlatformError, match=r"start it and run the job again.*never delete this file before"):
        merge(Domain(active=False), token)
    assert token.pauses == []
