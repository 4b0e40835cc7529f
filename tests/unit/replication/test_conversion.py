"""Which devices a guest from another platform gets, and what becomes of the replica when its conversion fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from understudy.context import Context
from understudy.errors import Cancelled, MoverError, Refused, ReplicaError, UnderstudyError
from understudy.model.replica import (
    Consistency,
    ConversionWish,
    Replica,
    ReplicaIdentity,
    ReplicaState,
    RestorePoint,
)
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms import ReplicaVmSpec, TargetPlatform
from understudy.replication.conversion import Converting, convert
from understudy.replication.failover import FailoverSite, start_failover
from understudy.storage.values import HeadFacts

POINT = "p7"
BOUND = api.HeadBound(HeadFacts(POINT, True, {"scsi0:0": "/srv/web/head/scsi0.qcow2"}), "<domain/>")
IDENTITY = ReplicaIdentity("id", "web", "j", "j", "web", "u", "d")
AUTO, NEVER, ALWAYS = ConversionWish.AUTO, ConversionWish.NEVER, ConversionWish.ALWAYS


@dataclass
class Ends:
    """A proxy and a platform that keep what they were asked for.

    :ivar error: what the conversion ends with; None for success.
    :ivar rebind: what a fresh head ends with; None for success.
    """

    program: str = "/usr/bin/virt-v2v-in-place"
    error: UnderstudyError | None = None
    rebind: UnderstudyError | None = None
    asked: list[str] = field(default_factory=list)
    defined: list[bool] = field(default_factory=list)
    state: ReplicaState = ReplicaState.FAILOVER
    fresh: list[str] = field(default_factory=list)

    def call(self, request: Any, _response: type[Any]) -> Any:
        self.asked.append(type(request).__name__)
        if isinstance(request, api.ProbeConversion):
            return api.ConversionFacts(self.program)
        if isinstance(request, api.BindHead):
            if self.rebind:
                raise self.rebind
            self.fresh.append(request.point)
            return BOUND
        if isinstance(request, api.SetState):
            self.state = request.state
        if isinstance(request, api.ConvertHead):
            return api.WorkStarted("work")
        if isinstance(request, api.WorkQuery):
            exc = self.error
            fields = None if exc is None else api.ErrorFields(exc.code, exc.what, exc.why, exc.todo)
            state = api.WorkState.DONE if exc is None else api.WorkState.FAILED
            return api.WorkStatus(state, 1.0, api.Progress(), fields)
        return api.Nothing()

    def define_replica(self, spec: ReplicaVmSpec) -> list[str]:
        self.defined.append(spec.converted)
        return []

    def convert(self, wish: ConversionWish, ctx: Context | None = None) -> str:
        owner = api.OwnedReplica(api.ReplicaRef("qcow2", "/srv", "web"), attempt=4)
        replica = Converting(cast(MoverClient, self), cast(TargetPlatform, self), IDENTITY, owner, BOUND)
        return convert(ctx or Context(), replica, wish)


def test_a_converted_guest_gets_virtio_devices() -> None:
    for wish in (AUTO, ALWAYS):
        ends = Ends()
        assert ends.convert(wish).startswith("the guest was converted")
        assert (ends.defined, ends.fresh, ends.state) == ([True], [], ReplicaState.FAILOVER)


def test_a_guest_that_is_never_converted_stays_as_it_is_defined() -> None:
    ends = Ends()
    assert ends.convert(NEVER).startswith("the guest was not converted")
    assert not ends.asked
    assert not ends.defined


@pytest.mark.parametrize("ends", [Ends(program=""), Ends(error=MoverError("convert", "failed: no root"))],
                         ids=["not installed", "fails"])
def test_a_conversion_that_is_only_tried_gives_way_to_a_fresh_head_and_says_why(ends: Ends) -> None:
    note = ends.convert(AUTO)
    assert note.startswith("the guest was not converted")
    assert ("virt-v2v is not installed" in note) == (not ends.program)
    assert ("no root" in note) == bool(ends.error)
    assert (ends.fresh, ends.defined, ends.state) == ([POINT], [False], ReplicaState.FAILOVER)


@pytest.mark.parametrize(("ends", "kind"), [
    (Ends(program=""), Refused), (Ends(error=MoverError("convert", "failed")), MoverError)])
def test_one_that_is_wished_in_any_case_fails_and_leaves_the_replica_ready(
        ends: Ends, kind: type[UnderstudyError]) -> None:
    with pytest.raises(kind):
        ends.convert(ALWAYS)
    assert (ends.fresh, ends.defined, ends.state) == ([POINT], [False], ReplicaState.READY)


def test_layers_that_were_written_to_are_never_passed_over() -> None:
    ends = Ends(error=ReplicaError("convert", "layers of restore points were written to meanwhile"))
    with pytest.raises(ReplicaError, match="were written to"):
        ends.convert(AUTO)
    assert ends.state is ReplicaState.READY


def test_where_it_cannot_be_taken_back_the_replica_stays_in_failover_and_the_first_cause_is_told() -> None:
    for wish in (AUTO, ALWAYS):
        ends = Ends(error=MoverError("convert", "the proxy died"), rebind=MoverError("bind", "it is gone"))
        with pytest.raises(MoverError, match="the proxy died"):
            ends.convert(wish)
        assert (ends.state, ends.defined) == (ReplicaState.FAILOVER, [])


def test_the_operator_ends_it_and_the_replica_is_ready() -> None:
    for wish in (AUTO, ALWAYS):
        ends, ctx = Ends(error=Cancelled("convert")), Context()
        with pytest.raises(Cancelled):
            ends.convert(wish, ctx)
        assert (ends.fresh, ends.state) == ([POINT], ReplicaState.READY)


class ReplicaEnds(Ends):
    """The same, of a replica whose VM is of the target's own platform."""

    def call(self, request: Any, response: type[Any]) -> Any:
        if isinstance(request, api.InspectReplica):
            point = RestorePoint(POINT, "2026-01-02T03:04:05Z", Consistency.CRASH, 1, 1 << 20, ())
            return api.ReplicaFacts(Replica(IDENTITY, ReplicaState.READY, (point,)), None, 3, {}, {}, {})
        return super().call(request, response)

    def replica_state(self, _uuid: str) -> None:
        return None

    def start_replica(self, _uuid: str) -> None:
        self.asked.append("start")


def test_a_replica_of_the_targets_own_platform_is_never_converted_and_a_wish_for_it_is_refused() -> None:
    ends = ReplicaEnds()
    ref = api.ReplicaRef("qcow2", "/srv", "web")
    site = FailoverSite(ref, cast(MoverClient, ends), cast(TargetPlatform, ends))
    with pytest.raises(Refused, match="cannot be converted"):
        start_failover(Context(), site, wish=ALWAYS)
    assert ends.asked == ["BindHead"]
    assert not ends.defined
    outcome = start_failover(Context(), site)
    assert (outcome.point, outcome.note) == (POINT, "")
    assert "ConvertHead" not in ends.asked
    assert ends.asked[-2:] == ["SetState", "start"]
