"""Verifying one point: to its end, until the time is over, or until Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from typing import cast

import pytest

from tests.unit.controller.test_due import replica
from understudy.controller.records import VerifyWish
from understudy.controller.verification import verify_point
from understudy.errors import Cancelled
from understudy.model.extent import Extent
from understudy.model.health import DiskHealth
from understudy.mover import api
from understudy.mover.client import MoverClient

REF = api.ReplicaRef("qcow2", "/srv", "web")
DONE = (api.VerifiedDisk("vda", 1, 0, (), ""),)


@dataclass
class Proxy:
    """Verifies for ``rounds`` looks at it, or until it is stopped."""

    rounds: int
    asked: list[object] = field(default_factory=list)
    stopped: bool = False

    def call(self, request: object, response_type: type) -> object:
        self.asked.append(request)
        match request:
            case api.VerifyPoint():
                return api.WorkStarted("work")
            case api.WorkQuery():
                self.rounds -= 1
                state = api.WorkState.RUNNING if self.rounds > 0 else api.WorkState.DONE
                return api.WorkStatus(state, 1.0, api.Progress(processed=1), verified=DONE)
            case api.CancelWork():
                self.stopped = True
                return api.Nothing()
            case api.InspectReplica():
                found = DiskHealth("p1", "vdb", "2026-01-01T00:00:00.000+00:00", 5, "", (Extent(0, 1 << 20),), 1)
                return api.ReplicaFacts(replica("p1"), None, 1, {}, {}, {}, health=(found,))
        raise AssertionError(request)


def client(proxy: Proxy) -> MoverClient:
    return cast("MoverClient", proxy)


def test_a_point_is_verified_as_it_was_wished_for() -> None:
    proxy, seen = Proxy(3), list[api.Progress]()
    answer = verify_point(client(proxy), REF, VerifyWish("p1", 7, restart=True), seen.append)
    assert (answer.disks, answer.complete, proxy.stopped) == (DONE, True, False)
    assert proxy.asked[0] == api.VerifyPoint(REF, "p1", 7, restart=True)
    assert len(seen) == 3


def test_when_the_time_is_over_it_is_stopped_and_what_is_known_so_far_is_told() -> None:
    proxy = Proxy(1000)
    answer = verify_point(client(proxy), REF, VerifyWish("p1", until=time.monotonic()), lambda _: None)
    assert (answer.complete, proxy.stopped) == (False, True)
    assert [(disk.name, disk.bad_count) for disk in answer.disks] == [("vda", 0), ("vdb", 1)]


def test_ctrl_c_stops_it_and_says_that_it_can_go_on() -> None:
    proxy = Proxy(1000)
    with pytest.raises(Cancelled, match="the same command goes on where it was"):
        verify_point(client(proxy), REF, VerifyWish("p1"), lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert proxy.stopped
