"""What came of a soak so far: truths of restore points, and counts. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Per disk name, one checksum for each MiB.
Truth = Mapping[str, Sequence[bytes]]


@dataclass
class Tally:
    """Counts, and what must not be: :attr:`problems`.

    :ivar truths: by replica and session, what the guest had at the session's snapshot.
    """

    sessions: Counter[str] = field(default_factory=Counter)
    disks: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    verified: int = 0
    mismatches: int = 0
    problems: list[str] = field(default_factory=list)
    truths: dict[tuple[str, int], Truth] = field(default_factory=dict)

    def session(self, state: str, report: Mapping[str, Any] | None) -> None:
        """A session ended so; ``report`` is what it says of itself, if it could."""
        self.sessions[state] += 1
        for task in report["tasks"] if report else ():
            for disk in task["disks"]:
                self.disks[f"{disk['mode']} {disk['reason']}".strip()] += 1

    def point(self, replica: str, point: Mapping[str, Any], found: Truth) -> None:
        """The content of a retained point was read; it must be that of its session's snapshot."""
        self.verified += 1
        truth = self.truths.get((replica, point["session"]))
        where = f"{replica}: point {point['id']} of session {point['session']}"
        if truth is None:
            self.mismatches += 1
            self.problems.append(f"{where}: nobody knows what the guest had then")
            return
        wrong = differences(truth, found)
        if wrong:
            self.mismatches += 1
            self.problems.append(f"{where}: {'; '.join(wrong)}")

    def forget(self, replica: str, kept: Iterable[int], newest: int) -> None:
        """Only the points of sessions ``kept`` are left; what a session after ``newest`` makes is not known yet."""
        stay = set(kept)
        for key in [key for key in self.truths if key[0] == replica and key[1] < newest and key[1] not in stay]:
            del self.truths[key]

    @property
    def good(self) -> bool:
        """Whether nothing happened that must not."""
        return not self.problems and not self.mismatches

    def lines(self) -> list[str]:
        """The counts, for people."""
        table = [("sessions", self.sessions), ("disks, by mode and reason", self.disks),
                 ("faults injected", self.faults), ("acts of the operator", self.acts)]
        found = [f"{name}: {sum(counts.values())} ({_listed(counts)})" if counts else f"{name}: 0"
                 for name, counts in table]
        found.append(f"points verified: {self.verified}")
        found.append(f"mismatches: {self.mismatches}")
        return found + [f"PROBLEM: {text}" for text in self.problems]


def differences(truth: Truth, found: Truth) -> list[str]:
    """Per disk, which megabytes are not as they should be; empty if all are."""
    if truth.keys() != found.keys():
        return [f"disks {', '.join(found)} instead of {', '.join(truth)}"]
    wrong = []
    for disk, chunks in truth.items():
        if len(chunks) != len(found[disk]):
            wrong.append(f"{disk}: {len(found[disk])} MiB instead of {len(chunks)}")
            continue
        places = [str(number) for number, pair in enumerate(zip(chunks, found[disk], strict=True))
                  if pair[0] != pair[1]]
        if places:
            wrong.append(f"{disk}: MiB {', '.join(places[:20])}{' ...' if len(places) > 20 else ''}")
    return wrong


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
