"""A layer in the making outlives power cuts: what was recorded is true, and what was not is told as touched."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.model.extent import Extent, span
from understudy.storage.qcow2.format import CLUSTER
from understudy.storage.qcow2.journal import Journal, JournalHeader, read_journal
from understudy.storage.qcow2.layer import Qcow2LayerWriter
from understudy.storage.qcow2.reopen import Reopened, reopen

from .power import Power, PowerCut
from .replica_lab import assert_clean, content, qemu, random_data

SLOW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Story:
    """One layer through several power cuts.

    :ivar image: what the disk reads as, by the calls that began.
    :ivar busy: clusters that a call under way writes to.
    :ivar unsure: clusters that were written to since the last checkpoint.
    :ivar claimed: clusters called complete, in this generation, by a checkpoint that may or may not have returned.
    """

    def __init__(self, directory: Path, rng: random.Random, power: Power, size: int, *, chained: bool) -> None:
        self.rng = rng
        self.power = power
        self.size = size
        self.clusters = -(-size // CLUSTER)
        self.directory = directory
        self.backing = "base" if chained else ""
        self.base = self._make_base() if chained else bytes(size)
        self.generation = 0
        self.layer = directory / "layer"
        self.header = JournalHeader("p0", size, "vda-p0.qcow2", "m")
        self.writer = Qcow2LayerWriter(self.layer, size, self.backing,
                                       journal=Journal.begin(self.journal, self.header))
        self.image = bytearray(self.base)
        self.busy: set[int] = set()
        self.unsure: set[int] = set()
        self.claimed: set[int] = set()
        power.before_sync = lambda: self._sometimes(self.put_any)
        power.before_data = lambda: self._sometimes(self.checkpoint)
        self._alone = True
        self.touched: set[int] = set()

    @property
    def journal(self) -> Path:
        return self.directory / f"journal{self.generation}"

    def _make_base(self) -> bytes:
        writer = Qcow2LayerWriter(self.directory / "base", self.size)
        data = random_data(self.rng, self.size)
        writer.write_at(0, data)
        writer.finish()
        return data

    def extent(self, number: int) -> Extent:
        return span(number * CLUSTER, min((number + 1) * CLUSTER, self.size))

    def covered(self, ranges: tuple[Extent, ...]) -> set[int]:
        return {number for item in ranges for number in range(item.start // CLUSTER, -(-item.end // CLUSTER))}

    def _sometimes(self, act: Callable[[], None]) -> None:
        """What another thread does at this moment."""
        if not self._alone and self.rng.random() < 0.3:
            self._alone = True
            act()
            self._alone = False

    def put_any(self) -> None:
        first = self.rng.randrange(self.clusters)
        self.put(first, min(first + self.rng.randint(1, 4), self.clusters), zeros=self.rng.random() < 0.35)

    def put(self, first: int, end: int, *, zeros: bool) -> None:
        """Write the clusters from ``first`` to before ``end``, unless one is complete or another call writes there."""
        numbers = set(range(first, end))
        if numbers & (self.claimed | self.busy):
            return
        start, stop = first * CLUSTER, min(end * CLUSTER, self.size)
        data = bytes(stop - start) if zeros else random_data(self.rng, stop - start)
        self.unsure |= numbers
        self.busy |= numbers
        self.image[start:stop] = data
        if zeros:
            self.writer.zero(start, stop - start)
        else:
            self.writer.write_at(start, data)
        self.busy -= numbers
        self.unsure |= numbers

    def checkpoint(self) -> None:
        ready = [number for number in range(self.clusters) if number not in self.busy and self.rng.random() < 0.07]
        self.claimed |= set(ready)
        before, self.unsure = self.unsure, set(self.busy)
        try:
            self.writer.checkpoint([self.extent(number) for number in ready])
        except BaseException:
            self.unsure |= before
            raise

    def act_until_the_power_is_cut(self) -> None:
        self.power.left = self.rng.randint(0, 60)
        self._alone = False
        with suppress(PowerCut):
            for _ in range(80):
                (self.checkpoint if self.rng.random() < 0.25 else self.put_any)()
        self._alone = True
        self.cut()

    def cut(self) -> None:
        self.writer.close()
        self.power.left = -1
        self.power.after_cut(self.layer)
        self.power.after_cut(self.journal)
        self.power.note(self.layer)
        self.power.note(self.journal)

    def come_back(self) -> bool:
        """Reopen the layer and check what is told of it; False if nothing of it can be continued."""
        recorded = read_journal(self.journal)
        if recorded is None:  # not even the first record was durable
            return False
        complete = self.covered(recorded.complete)
        assert complete <= self.claimed
        reopened = self._reopened_in_spite_of_cuts()
        shown = self._shown(reopened)
        for number in range(self.clusters):
            part = slice(self.extent(number).start, self.extent(number).end)
            if number in complete or number not in self.unsure:
                assert shown[part] == self.image[part], f"cluster {number}"
            if shown[part] != self.base[part]:
                assert number in self.covered(reopened.touched), f"cluster {number}"
        self.image, self.unsure, self.busy = bytearray(shown), set(), set()
        self.claimed = complete
        self._go_on(reopened)
        return True

    def _reopened_in_spite_of_cuts(self) -> Reopened:
        while True:
            self.power.left = self.rng.randint(0, 12)
            recorded = read_journal(self.journal)
            assert recorded is not None
            reopened = None
            with suppress(PowerCut):
                reopened = reopen(self.layer, recorded)
                assert reopened is not None
            self.power.left = -1
            if reopened is not None:
                return reopened
            self.cut()

    def _shown(self, reopened: Reopened) -> bytes:
        """What the layer would show if it were finished now."""
        copy = self.directory / "copy"
        shutil.copyfile(self.layer, copy)
        Qcow2LayerWriter(copy, self.size, self.backing, reopened=reopened).finish()
        assert_clean(copy)
        return content(copy)

    def _go_on(self, reopened: Reopened) -> None:
        recorded = read_journal(self.journal)
        assert recorded is not None
        if self.rng.random() < 0.5:
            journal = Journal.resume(self.journal, recorded)
        else:  # as another draft that takes the layer over
            self.generation += 1
            self.claimed = set()
            journal = Journal.begin(self.journal, self.header)
            journal.append(reopened.clusters, reopened.tables, ())
        self.touched = self.covered(reopened.touched)
        self.writer = Qcow2LayerWriter(self.layer, self.size, self.backing, journal=journal, reopened=reopened)

    def complete_the_disk(self) -> None:
        """Write all that nobody vouches for."""
        for number in range(self.clusters):
            if number in self.touched or self.rng.random() < 0.3:
                self.put(number, number + 1, zeros=self.rng.random() < 0.3)
        self.writer.finish()
        assert content(self.layer) == self.image
        assert_clean(self.layer)
        expected = self.directory / "expected"
        expected.write_bytes(self.image)
        qemu("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.layer, expected)


@SLOW
@given(seed=st.integers(0, 2**32), sectors=st.integers(1, 9000), chained=st.booleans())
def test_what_was_recorded_before_power_cuts_is_true_after_them(
        tmp_path_factory: pytest.TempPathFactory, seed: int, sectors: int, chained: bool) -> None:
    directory = tmp_path_factory.mktemp("power")
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        story = Story(directory, rng, Power(patch, rng), sectors * 512, chained=chained)
        for _ in range(rng.randint(1, 4)):
            story.act_until_the_power_is_cut()
            if not story.come_back():
                return
        story.complete_the_disk()
